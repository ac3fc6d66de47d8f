"""Tags and cover art of a song, carried over to its stems by mutagen, where that is installed."""

from __future__ import annotations

import base64
import re
import warnings
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

from hunterFormsBS.limits import LARGEST_PICTURES, LARGEST_TAGS, LONGEST_TAG, MOST_TAGS
from hunterFormsBS.songs.ffmpeg import texts_of

__all__ = ["Tags", "read_tags", "write_tags"]

FRAMES = {
    "album": "TALB",
    "albumartist": "TPE2",
    "artist": "TPE1",
    "bpm": "TBPM",
    "composer": "TCOM",
    "copyright": "TCOP",
    "date": "TDRC",
    "discnumber": "TPOS",
    "genre": "TCON",
    "isrc": "TSRC",
    "title": "TIT2",
    "tracknumber": "TRCK",
}
"""Frames of ID3 for the names in Vorbis comments, which go into every container that has tags."""

ALIASES = {
    "track": "tracknumber",
    "year": "date",
    "disc": "discnumber",
    "album artist": "albumartist",
    "album_artist": "albumartist",
}
"""Their names in APEv2, the tags of WavPack, and in FFmpeg."""

ATOMS = {
    "album": "\xa9alb",
    "albumartist": "aART",
    "artist": "\xa9ART",
    "bpm": "tmpo",
    "composer": "\xa9wrt",
    "copyright": "cprt",
    "date": "\xa9day",
    "discnumber": "disk",
    "genre": "\xa9gen",
    "isrc": "----:com.apple.iTunes:ISRC",
    "title": "\xa9nam",
    "tracknumber": "trkn",
}
"""Their names in MP4."""

MIMES = {13: "image/jpeg", 14: "image/png"}
"""Formats of pictures in MP4, by their numbers there."""

FRONT_COVER = 3


class Tags(NamedTuple):
    """The tags and pictures of a song."""

    texts: dict[str, list[str]]
    """By the names of `FRAMES`."""
    pictures: list[Any]
    """Of the type `mutagen.flac.Picture`."""


def read_tags(pathFilename: Path) -> Tags:
    """Return the tags of a file; none where it has none, they are damaged, or mutagen is not installed.

    FFmpeg, if it is installed, reads tags that mutagen does not know, for example INFO in WAV, Matroska and CAF.
    """
    tags = Tags({}, [])
    with suppress(ImportError):
        tags = _tags_by_mutagen(pathFilename)
        if not tags.texts:
            told = {ALIASES.get(name, name): [text] for name, text in texts_of(pathFilename).items()}
            tags = tags._replace(texts={name: told[name] for name in FRAMES if name in told})
    return _bounded(tags)


def _bounded(tags: Tags) -> Tags:
    """Cut off texts and pictures beyond the limits, with a warning."""
    texts = {name: [text[:LONGEST_TAG] for text in values[:MOST_TAGS]] for name, values in tags.texts.items()}
    if cut := [name for name, values in texts.items() if values != tags.texts[name]]:
        warnings.warn(
            f"{', '.join(cut)} of the song: more than {LONGEST_TAG} characters or {MOST_TAGS} values are cut off",
            stacklevel=3,
        )
    size = sum(len(picture.data) for picture in tags.pictures)
    if size > LARGEST_PICTURES:
        warnings.warn(f"the pictures of the song have {size >> 20} MiB and are left out", stacklevel=3)
    return Tags(texts, tags.pictures if size <= LARGEST_PICTURES else [])


class _Zlib:
    """The part of zlib that mutagen needs, with a limit for all tags of a song."""

    error = zlib.error

    def __init__(self) -> None:
        self.left = LARGEST_TAGS

    def decompress(self, data: bytes) -> bytes:
        """Return what was compressed."""
        engine = zlib.decompressobj()
        found = engine.decompress(data, self.left + 1)
        self.left -= len(found)
        if self.left < 0 or not engine.eof:
            self.left = max(0, self.left)
            raise zlib.error(f"incomplete, or more than {LARGEST_TAGS} bytes")
        return found


def _tags_by_mutagen(pathFilename: Path) -> Tags:
    mutagen = import_module("mutagen")
    frames: Any = import_module("mutagen.id3._frames")
    frames.zlib = _Zlib()
    texts: dict[str, list[str]] = {}
    pictures: list[Any] = []
    # Damaged tags raise exceptions of any type.
    with suppress(Exception), pathFilename.open("rb") as file:
        song = mutagen.File(file)
        tags: Any = getattr(song, "tags", None)
        if tags is None:
            return Tags(texts, pictures)
        if hasattr(tags, "getall"):
            texts = {name: [str(text) for text in tags[frame].text] for name, frame in FRAMES.items() if frame in tags}
            pictures = [_picture(one.data, one.mime, one.type, one.desc) for one in tags.getall("APIC")]
        elif type(song).__name__ == "MP4":
            texts = {name: list(map(_mp4_text, tags[atom])) for name, atom in ATOMS.items() if atom in tags}
            pictures = [_picture(bytes(one), MIMES.get(one.imageformat, "")) for one in tags.get("covr", ())]
        else:
            named = {ALIASES.get(key.lower(), key.lower()): _texts(value) for key, value in dict(tags).items()}
            texts = {name: named[name] for name in FRAMES if name in named}
            pictures = [*getattr(song, "pictures", ()), *_ogg_pictures(named.get("metadata_block_picture", ()))]
    return Tags(texts, pictures)


def write_tags(tags: Tags, paths: Sequence[Path]) -> None:
    """Put tags into files of any format that `hunterFormsBS.songs.writing` writes, except RF64, which has none.

    What a format cannot hold, for example a picture of more than 16 MiB in FLAC, is left out with a warning.
    """
    if not (tags.texts or tags.pictures):
        return
    for path in paths:
        with path.open("rb") as file:
            if file.read(4) == b"RF64":
                continue
        if not _saved(tags, path, "pictures"):
            _saved(tags._replace(pictures=[]), path, "tags")


def _saved(tags: Tags, path: Path, what: str) -> bool:
    """Put tags into a file, and tell whether it could hold them; else warn that `what` is lost."""
    mutagen: Any = import_module("mutagen")
    try:
        if (song := mutagen.File(path)) is not None:
            _put(tags, song)
            song.save()
    except mutagen.MutagenError as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        warnings.warn(f"the {what} of the song cannot be written to {path.suffix[1:]}: {error}", stacklevel=3)
        return False
    return True


def _put(tags: Tags, song: Any) -> None:
    """Put tags into a file of mutagen that is open."""
    if song.tags is None:
        song.add_tags()
    held: Any = song.tags
    if hasattr(held, "getall"):
        id3 = import_module("mutagen.id3")
        for name, values in tags.texts.items():
            held.add(getattr(id3, FRAMES[name])(encoding=3, text=values))
        for number, one in enumerate(tags.pictures):
            # A second picture of one description would replace the first.
            description = one.desc or (str(number) if number else "")
            held.add(id3.APIC(encoding=3, mime=one.mime, type=one.type, desc=description, data=one.data))
        return
    if type(song).__name__ == "MP4":
        held.update({ATOMS[name]: _mp4_values(ATOMS[name], values) for name, values in tags.texts.items()})
        known = [(one, kind) for one in tags.pictures for kind, mime in MIMES.items() if one.mime == mime]
        if known:
            held["covr"] = [import_module("mutagen.mp4").MP4Cover(one.data, kind) for one, kind in known]
        return
    held.update(tags.texts)
    if hasattr(song, "add_picture"):
        for one in tags.pictures:
            song.add_picture(one)
    elif tags.pictures:
        held["metadata_block_picture"] = [base64.b64encode(one.write()).decode() for one in tags.pictures]


def _texts(value: object) -> list[str]:
    return [str(one) for one in cast("list[object]", value)] if isinstance(value, list) else [str(value)]


def _picture(data: bytes, mime: str, kind: int = FRONT_COVER, description: str = "") -> Any:
    picture = import_module("mutagen.flac").Picture()
    picture.data, picture.mime, picture.type, picture.desc = data, mime, int(kind), description
    return picture


def _mp4_values(atom: str, texts: Sequence[str]) -> list[Any]:
    """Return the values of an atom of MP4: numbers where it has numbers, without texts that are none."""
    if atom in ("trkn", "disk", "tmpo"):
        found = [re.match(r"(\d{1,4})(?:/(\d{1,4}))?", text, re.ASCII) for text in texts]
        pairs = [(int(each[1]), int(each[2] or 0)) for each in found if each]
        return [number for number, _ in pairs] if atom == "tmpo" else pairs
    return [text.encode() if atom.startswith("----") else text for text in texts]


def _mp4_text(value: object) -> str:
    """Return a text, a number, or a number and a total as `3/12`."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, tuple):
        number, total = cast("tuple[int, int]", value)
        return f"{number}/{total}" if total else str(number)
    return str(value)


def _ogg_pictures(encoded: Iterable[str]) -> list[Any]:
    return [import_module("mutagen.flac").Picture(base64.b64decode(one)) for one in encoded]
