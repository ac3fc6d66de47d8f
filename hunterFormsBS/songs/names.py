"""Names of files: made safe, the template, and no two files of one name anywhere."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from string import Formatter

from hunterFormsBS.printable import printable, short_repr

__all__ = [
    "FIELDS",
    "OF_STEMS",
    "TEMPLATE",
    "TEMPLATE_TOGETHER",
    "alike",
    "check_apart",
    "check_length",
    "check_template",
    "fields_of",
    "fill_in",
    "key_of",
    "safe_name",
    "song_name",
]

TEMPLATE = "{song}/{stem}.{ext}"
TEMPLATE_TOGETHER = "{song}.{ext}"
"""Of files that hold all stems of a song."""

FIELDS = {
    "song": "name of the song without suffix",
    "file_name": "the same",
    "stem": "name of the stem",
    "instr": "the same",
    "number": "of the stem, from 1",
    "source": "name of the song with suffix",
    "ext_source": "that suffix, without its dot",
    "dir": "name of the folder that the song is in",
    "dir_name": "path of that folder within the one that was given",
    "model": "name of the checkpoint without suffix",
    "model_type": "bs_roformer or mel_band_roformer",
    "start_time": "seconds since 1970 when the program began",
    "ext": "suffix of the format",
}
"""Fields of names of files; `file_name`, `instr`, `dir_name`, `model_type` and `start_time` are MSST's."""

OF_STEMS = ("stem", "instr", "number")

LONGEST_NAME = 255
"""Bytes of the name of a file in common file systems, where the system does not tell."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def safe_name(name: object) -> str:
    r"""Return a name that every system takes for a file, and that leads to no other folder.

    Control characters and `\ / : * ? " < > |` become underscores, dots and spaces at its ends go, letters are
    composed (NFC). What is left empty is an underscore, and what Windows reserves gets one.
    """
    text = unicodedata.normalize("NFC", str(name))
    text = "".join("_" if unicodedata.category(one)[0] == "C" or one in r'\/:*?"<>|' else one for one in text)
    text = text.strip(". ")
    return f"{text}_" if not text or _RESERVED.fullmatch(text) else text


def song_name(path: PurePath) -> str:
    """Return the name of a song, which stays below the output folder even if its file is called `...wav`."""
    # Not `stem`: from Python 3.14 on it includes leading dots.
    stem = path.name.rpartition(".")[0] or path.name
    return stem if stem.strip(". ") else safe_name(stem)


def key_of(path: PurePath | str) -> str:
    """Return a key that names share if any common file system takes them for one: composed (NFC), case folded."""
    parts = [part.rstrip(". ") or part for part in PurePath(path).parts]
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", "/".join(parts)).casefold())


def check_template(template: str) -> str:
    """Return a template of names of files, ended with `.{ext}`, if it can work.

    Raises
    ------
    ValueError
        If it names an unknown field, leads out of the output folder, or has no name for a file.
    """
    hint = f"use {', '.join(f'{{{field}}}' for field in FIELDS)}, such as '{TEMPLATE}'"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{short_repr(template)} is not a template ({printable(error)}): {hint}") from error
    for _, field, format_spec, conversion in parts:
        if field is not None and (field not in FIELDS or format_spec or conversion):
            raise ValueError(f"{short_repr(template)} has the field {short_repr(field)}: {hint}")
    path = PurePath(template)
    folders = re.split(r"[/\\]", template)
    if path.is_absolute() or path.drive or any(folder.strip() in ("", ".", "..") for folder in folders):
        raise ValueError(f"{short_repr(template)} leads out of --output, or names a folder: {hint}")
    return template if template.endswith(".{ext}") else template + ".{ext}"


def fields_of(template: str) -> set[str]:
    """Return the fields that a template has."""
    return {field for _, field, _, _ in Formatter().parse(template) if field}


def fill_in(template: str, fields: Mapping[str, str | int]) -> PurePath:
    """Return the name of the file of a stem, below the output folder, without folders whose name is empty.

    The template is one that `check_template` returned; the fields are safe names.
    """
    parts = template.format_map(fields).split("/")
    return PurePath(*(part for part in parts if part.strip() not in ("", ".", "..")))


def alike(planned: Mapping[Path, Sequence[Path]]) -> list[list[Path]]:
    """Return groups of songs that have a file of a stem in common, in the order of the first of each."""
    groups: dict[str, list[Path]] = {}
    for song, files in planned.items():
        for key in dict.fromkeys(map(key_of, files)):
            groups.setdefault(key, []).append(song)
    return [list(group) for group in dict.fromkeys(tuple(group) for group in groups.values() if len(group) > 1)]


def check_apart(planned: Mapping[Path, Sequence[Path]]) -> None:
    """Raise a ValueError if two stems or songs would be one file, or if a file of one would be a folder of another.

    `planned` has the files of the stems of each song.
    """
    owners: dict[str, Path] = {}
    for song, files in planned.items():
        for file in files:
            key = key_of(file)
            if owners.get(key) is song:
                raise ValueError(
                    f"two stems would be written as {printable(file)}: give the stems of the configuration different "
                    "names, ask for one of them with --stems, or put {stem} or {number} into --name-template"
                )
            if key in owners:
                raise ValueError(_clash(owners[key], song, file))
            owners[key] = song
    for song, files in planned.items():
        for parent in {parent for file in files for parent in file.parents}:
            if (other := owners.get(key_of(parent))) is not None:
                raise ValueError(_clash(other, song, parent))


def check_length(file: Path, output: Path) -> None:
    """Raise a ValueError if the name of a file, or of a folder above it, is longer than file systems take."""
    longest = _longest_name(output)
    for part in file.relative_to(output).parts:
        if (length := len(os.fsencode(part))) > longest:
            raise ValueError(
                f"{printable(part)} is a name of {length} bytes, and file systems take {longest}: rename the song, or "
                "the stems in the configuration, or use --name-template"
            )


def _longest_name(folder: Path) -> int:
    """Return how many bytes a name may have in a folder, which may not be there yet."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is None or not hasattr(os, "pathconf"):
        return LONGEST_NAME
    try:
        return min(LONGEST_NAME, os.pathconf(existing, "PC_NAME_MAX"))
    except (OSError, ValueError):
        return LONGEST_NAME


def _clash(one: Path, other: Path, file: Path) -> str:
    return (
        f"{printable(one)} and {printable(other)} would both be written to {printable(file)}: separate them in two "
        "calls with different --output, or use another --name-template"
    )
