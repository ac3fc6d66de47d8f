"""The songs that arguments name: files, pipes, patterns, and the audio files below folders."""

from __future__ import annotations

import glob
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

from hunterFormsBS.console import RECORD, Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.printable import printable
from hunterFormsBS.songs.ffmpeg import is_audio
from hunterFormsBS.songs.names import song_name
from hunterFormsBS.songs.sharing import rank_in_job

__all__ = ["AUDIO_SUFFIXES", "STANDARD_INPUT", "Song", "find_songs", "is_pipe"]

STANDARD_INPUT = Path("-")

AUDIO_SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".ape", ".au", ".caf", ".dsf", ".flac", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".rf64"}
    | {".aac", ".ac3", ".alac", ".dts", ".eac3", ".m4a", ".m4b", ".mka", ".snd", ".spx", ".tta", ".voc", ".w64", ".wav"}
    | {".wave", ".wma", ".wv", ".mkv", ".mov", ".mp4", ".webm"}
)
"""Files that are taken from folders by their names; of others, those whose beginning can be decoded."""


class Song(NamedTuple):
    """A file to separate."""

    path: Path
    """As it was given; messages call it so."""
    source: Path
    """Where it is read: of a pipe, a copy."""
    folder: Path = Path()
    """Its folder within the one that was given, and that of its stems within the output."""

    @property
    def name(self) -> str:
        """The name that its stems get."""
        return "stdin" if self.path == STANDARD_INPUT else song_name(self.path)

    @property
    def source_name(self) -> str:
        """The name of its file with the suffix."""
        name = self.path.name
        return self.name if self.path == STANDARD_INPUT or not name.strip(". ") else name


def find_songs(given: Sequence[Path], output: Path, copies: ExitStack, console: Console) -> list[Song]:
    """Return the songs that arguments name, each file once.

    Parameters
    ----------
    given : Sequence[Path]
        Files, folders, patterns that the shell left as they are, named pipes, and `-` for standard input.
    output : Path
        Earlier files there are not songs of a folder that holds it.
    copies : ExitStack
        Keeps copies of the contents of pipes until it ends.

    Raises
    ------
    UsageError
        If nothing matches a pattern, or a folder has no audio file.
    """
    songs: dict[Path, Song] = {}
    for path in _expanded(given):
        if is_pipe(path):
            # Read once: a second time would wait for another writer.
            if (pipe := path if path == STANDARD_INPUT else path.resolve()) not in songs:
                songs[pipe] = Song(path, _copy(path, copies, console))
            continue
        if not path.is_dir():
            songs.setdefault(path.resolve(), Song(path, path))
            continue
        if path.resolve() == output.resolve():
            raise UsageError(
                f"--output {printable(output)} is the folder that songs are taken from, and the next run would "
                f"separate the stems: pass another, such as {printable(output / 'stems')}"
            )
        below = _songs_below(path, output, console)
        if not below and path in given:
            raise UsageError(f"{printable(path)} is a folder without audio files: pass files, or another folder")
        for file in below:
            songs.setdefault(file.resolve(), Song(file, file, file.parent.relative_to(path)))
    if not songs:
        raise UsageError(f"{', '.join(map(printable, given))}: only folders without audio files match")
    return list(songs.values())


def _expanded(given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        if not glob.has_magic(str(path)) or path.exists():
            yield path
            continue
        root = Path(path.anchor)
        found = sorted(root.glob(str(path.relative_to(root))))
        if not found and not any(sign in str(path) for sign in "*?"):
            yield path  # A file with brackets in its name, which is missing.
        elif not found:
            raise UsageError(f"nothing matches {printable(path)}: pass files, folders or another pattern")
        yield from found


def _songs_below(folder: Path, output: Path, console: Console) -> list[Path]:
    """Return the audio files below a folder, and say which files are left out."""
    written = output.resolve() if folder.resolve() in output.resolve().parents else None
    songs: list[Path] = []
    left_out: dict[str, list[Path]] = {}
    for file in sorted(each for each in folder.rglob("*") if not each.is_dir()):
        reason = _why_left_out(file, folder, written)
        left_out.setdefault(reason, []).append(file) if reason else songs.append(file)
    if left_out and rank_in_job().rank == 0:
        counts = ", ".join(f"{len(files)} {reason}" for reason, files in left_out.items())
        console.remark(f"{printable(folder)}: files left out: {counts}")
        for reason, files in left_out.items():
            for file in files:
                console.record({**RECORD, "song": str(file), "status": "left out", "error": reason})
    return songs


def _why_left_out(file: Path, folder: Path, written: Path | None) -> str:
    """Return why a file below a folder is not a song; nothing if it is one."""
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return "hidden"
    if not file.is_file():
        return "not regular"
    if written is not None and written in file.resolve().parents:
        return "written by an earlier run"
    return "" if file.suffix.lower() in AUDIO_SUFFIXES or is_audio(file) else "not audio"


def is_pipe(path: Path) -> bool:
    """Tell whether a path is standard input or a named pipe, which can be read once."""
    try:
        return path == STANDARD_INPUT or stat.S_ISFIFO(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _copy(pipe: Path, copies: ExitStack, console: Console) -> Path:
    """Copy the contents of a pipe to a temporary file: headers are read first, and some songs twice."""
    if pipe != STANDARD_INPUT:
        console.remark(f"{printable(pipe)} is a named pipe: waiting until a program writes audio into it")
        source: IO[bytes] = copies.enter_context(pipe.open("rb"))
    elif sys.stdin is None:
        raise UsageError("standard input is closed: pass a file, or pipe audio into the program")
    else:
        if sys.stdin.isatty():
            console.remark("reading audio from standard input, which is a terminal: pipe a file into it")
        source = sys.stdin.buffer
    copied = Path(copies.enter_context(TemporaryDirectory(prefix="hunterFormsBS"))) / "song"
    try:
        with copied.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} for the contents of {pipe}", str(copied)) from error
    return copied
