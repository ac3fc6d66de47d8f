"""What files are called: names made safe, the template, and no two files of one name anywhere."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from hunterFormsBS.printable import printable, short_repr

TEMPLATE = "{song}/{stem}.{ext}"
FIELDS = ("song", "stem", "model", "number", "ext")

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class Song(NamedTuple):
    """A file to separate.

    Parameters
    ----------
    path : Path
        Where it is read.
    name : str
        Of the song, in the names of its stems.
    folder : Path
        Where it lies within the folder that was asked for: the folder of its stems within the output.
    """

    path: Path
    name: str
    folder: Path = Path()


def safe_name(name: object) -> str:
    """Return the name of a stem as one that every system takes, and that leads nowhere else.

    Control characters and `\\ / : * ? " < > |` become underscores, dots and spaces at its ends go, letters are
    composed (NFC). What is left empty or is reserved by Windows gets an underscore.
    """
    text = unicodedata.normalize("NFC", str(name))
    text = "".join("_" if unicodedata.category(letter)[0] == "C" or letter in r'\/:*?"<>|' else letter for letter in text)
    text = text.strip(". ")
    return f"{text}_" if not text or _RESERVED.fullmatch(text) else text


def song_name(path: Path) -> str:
    """Return the name of a song, which stays below the output folder also where its file is called `...wav`."""
    name = path.stem
    return name if name.strip(". ") else safe_name(name)


def key_of(path: Path | str) -> str:
    """Return what two names share that any usual file system takes for one: composed, and without upper case."""
    parts = [part.rstrip(". ") or part for part in Path(path).parts]
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", "/".join(parts)).casefold())


def unique_names(names: Iterable[object]) -> list[str]:
    """Return safe names, with numbers behind those that are there before: `vocals`, `vocals_2`."""
    unique: list[str] = []
    taken: set[str] = set()
    for name in names:
        safe = candidate = safe_name(name)
        number = 1
        while key_of(candidate) in taken:
            number += 1
            candidate = f"{safe}_{number}"
        taken.add(key_of(candidate))
        unique.append(candidate)
    return unique


def check_template(template: str) -> None:
    """Refuse a template of file names that cannot work.

    Raises
    ------
    ValueError
        If it names an unknown field, leads out of the output folder, or has no name for a file.
    """
    hint = "use {song}, {stem}, {model}, {number} and {ext}, such as '{song}/{stem}.{ext}'"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{short_repr(template)} is no template ({printable(error)}): {hint}") from error
    for _, field, format_spec, conversion in parts:
        if field is not None and (field not in FIELDS or format_spec or conversion):
            raise ValueError(f"{short_repr(template)} has the field {short_repr(field)}: {hint}")
    path = Path(template)
    folders = re.split(r"[/\\]", template)
    if path.is_absolute() or path.drive or any(folder.strip() in ("", ".", "..") for folder in folders):
        raise ValueError(f"{short_repr(template)} leads out of --output, or names a folder: {hint}")


def targets_of(
    song: Song, names: Sequence[str], output: Path, template: str = TEMPLATE, *, model: str = "model", ext: str = "wav"
) -> dict[str, Path]:
    """Return the file that each stem of a song gets.

    Parameters
    ----------
    song : Song
    names : Sequence[str]
        Safe names of the stems, the residual among them.
    output : Path
        What all files stay below.
    template : str
        As `check_template` accepts it.
    model : str
        What `{model}` stands for.
    ext : str
        What `{ext}` stands for; it is put behind a template that does not end with it.

    Raises
    ------
    ValueError
        If two stems would get one file.
    """
    if not template.endswith(".{ext}"):
        template += ".{ext}"
    targets: dict[str, Path] = {}
    seen: dict[str, str] = {}
    for number, stem in enumerate(names, start=1):
        filled = template.format(song=song.name, stem=stem, model=safe_name(model), number=number, ext=ext)
        path = output / song.folder / filled
        if any(part in (".", "..") for part in Path(filled).parts):
            raise ValueError(f"{printable(path)} would lead out of --output: use another --name-template")
        other = seen.setdefault(key_of(path), stem)
        if other != stem:
            raise ValueError(
                f"the stems {printable(other)} and {printable(stem)} would both be written to {printable(path)}: "
                "put {stem} or {number} into --name-template"
            )
        targets[stem] = path
    return targets


def check_apart(planned: Mapping[Song, Iterable[Path]]) -> None:
    """Refuse two songs that would be written to one file, and a file of one that is a folder of another.

    Raises
    ------
    ValueError
        With both songs and the file.
    """
    owners: dict[str, Song] = {}
    paths = {song: list(targets) for song, targets in planned.items()}
    for song, targets in paths.items():
        for path in targets:
            other = owners.setdefault(key_of(path), song)
            if other is not song:
                raise ValueError(_clash(other, song, path))
    for song, targets in paths.items():
        for parent in {parent for path in targets for parent in path.parents}:
            other = owners.get(key_of(parent))
            if other is not None:
                raise ValueError(_clash(other, song, parent))


def _clash(one: Song, other: Song, path: Path) -> str:
    return (
        f"{printable(one.path)} and {printable(other.path)} would both be written to {printable(path)}: "
        "separate them in two calls with different --output"
    )
