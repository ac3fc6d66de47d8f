"""The ground truth of a song: the files of each stem and of the mixture, and which files are sums of others.

    songs = find_songs(Path("data/train"), ["vocals", "other"], 44100)
    mixture, stems = read_song(songs[0], [1], channels=2)

Training, validation and scoring share this definition. A folder contains a folder for each song, with a file for each
stem: MUSDB18-HQ's layout. File names are case-insensitive; hidden files and folders are ignored.

Axis letters: n stem, s audio channel, t sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

Audio = NDArray[np.float32]
Read = Callable[[Path, int, int, int], Audio]
"""Reads from a file: path, first sample, number of samples, number of channels. See `read`."""

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
TAKES_THE_REST = ("other", "instrumental")

WHOLES = ("mix", "fullmix", "mixdown", "master")
"""Names of mixtures besides `mixture`, which is read."""

REMAINDERS = ("instrumental", "instrumentals", "accompaniment", "karaoke", "minusone")
"""Names of the sum of all stems but vocals. `no_drums` and the like are such sums too."""

VOICES = ("voc", "voice", "sing", "speech")
"""Parts of names of files that are not part of an instrumental."""

SHOWN = 5
"""Number of printed compositions of a stem, or of file names."""

tensor_of = cast("Callable[[Audio], Tensor]", torch.from_numpy)  # pyright: ignore[reportUnknownMemberType]


class Song(NamedTuple):
    """Files of a song.

    Parameters
    ----------
    folder : Path
    length : int
        Samples of its shortest stem.
    parts : tuple of tuple of Path
        Files of each instrument, then those, if any, that are only in the mixture.
    mixture : Path, default None
        The file of the mixture, if there is one.
    left_out : tuple of Path
        Files whose audio is, by their names, already in others.
    """

    folder: Path
    length: int
    parts: tuple[tuple[Path, ...], ...]
    mixture: Path | None = None
    left_out: tuple[Path, ...] = ()


def find_songs(folder: Path, instruments: Sequence[str], sample_rate: int, *, target: str | None = None) -> list[Song]:
    """List the songs in a folder, reading only the headers of their files.

    Parameters
    ----------
    folder : Path
    instruments : sequence of str
        File names without suffix. `other` and `instrumental` also take all files that are not named here.
    sample_rate : int
        Hz.
    target : str, default None
        The only instrument to score: songs may lack the others, which are then silent.

    Raises
    ------
    ValueError
        If there are no songs; if one lacks an instrument, has two files for one, or has another sample rate; or if the
        true stem would be the whole mixture.
    """
    songs = [_song(path, instruments, sample_rate, target) for path in visible(folder) if path.is_dir()]
    if not songs:
        stems = ", ".join(f"{name}.wav" for name in instruments)
        raise ValueError(f"{folder} holds no songs: put a folder for each song there, with {stems} in it")
    return songs


def visible(folder: Path) -> list[Path]:
    """Return the sorted contents of a folder, without hidden files and additions of macOS archives."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def _song(folder: Path, instruments: Sequence[str], sample_rate: int, target: str | None) -> Song:
    files = _files_by_name(folder)
    mixture = files.pop("mixture", None)
    left_out = {name: files.pop(name) for name in _in_others(list(files), instruments)}
    names = [name.casefold() for name in instruments]
    wanted = (target or "").casefold()
    rest = tuple(path for name, path in files.items() if name not in names)
    taker = next((name for name in TAKES_THE_REST if name in names), None)
    parts: list[tuple[Path, ...]] = []
    for name in names:
        own = (*([files[name]] if name in files else []), *(rest if name == taker else ()))
        if not own and wanted in ("", name):
            raise ValueError(f"{folder} has no file {name}.wav: its stems are {_listed(files, left_out)}")
        if name == taker and len(own) == len(files) > 1:
            raise ValueError(
                f"{folder}: the truth of {name} would be the whole mixture, {' + '.join(path.name for path in own)}: "
                "name the other stems too, in training.instruments of the configuration, and with "
                f"training.target_instrument: {name} for a model of that stem alone"
            )
        parts.append(own)
    lengths = [_length(path, sample_rate) for path in files.values()]
    if mixture is not None:
        _length(mixture, sample_rate)
    together = tuple(parts) if taker or not rest else (*parts, rest)
    return Song(folder, min(lengths), together, mixture, tuple(left_out.values()))


def _files_by_name(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in visible(folder):
        if path.suffix.lower() not in SUFFIXES or path.is_dir():
            continue
        name = path.stem.casefold()
        if name in files:
            raise ValueError(f"{folder} has two files for {name}, {files[name].name} and {path.name}: remove one")
        files[name] = path
    return files


def _in_others(names: Sequence[str], instruments: Sequence[str]) -> list[str]:
    """Return the names of files that are, by name, sums of others, or parts of a requested sum.

    An instrumental is a sum only if its parts exist: with only vocals, `other` takes it.
    """
    wanted = {name.casefold() for name in instruments}
    plain = {name: "".join(letter for letter in name if letter.isalnum()) for name in names}
    wholes = [name for name in names if plain[name] in WHOLES and name not in wanted]
    remainders = {*REMAINDERS, *(f"no{name}" for name in (*wanted, *plain.values()))}
    sums = [name for name in names if plain[name] in remainders]
    played = [name for name in names if name not in (*wholes, *sums) and not any(each in name for each in VOICES)]
    if any(name in wanted for name in sums):
        return [*wholes, *(name for name in (*sums, *played) if name not in wanted)]
    return [*wholes, *(sums if played else sums[1:])]


def _length(path: Path, sample_rate: int) -> int:
    """Return the length of a file in samples, from its header."""
    header = soundfile.info(str(path))
    if header.samplerate != sample_rate:
        raise ValueError(
            f"{path} has {header.samplerate} Hz, and the configuration {sample_rate} Hz: convert the file, "
            "or change audio.sample_rate"
        )
    return int(header.frames)


def _listed(files: dict[str, Path], left_out: dict[str, Path]) -> str:
    """Return a text with the stems of a song and the files that are left out."""
    listed = ", ".join(path.stem for path in files.values()) or "none"
    if not left_out:
        return listed
    names = ", ".join(path.name for path in left_out.values())
    return f"{listed}; {names} is taken to be in other files already: rename it if it is a stem"


def explain_sums(songs: Sequence[Song], instruments: Sequence[str]) -> list[str]:
    """Return lines on stems that are sums of files, files only in the mixture, and files left out.

    Returns
    -------
    list of str
        For example `other = bass + guitar + piano in 3 of 7 songs`.
    """
    lines: list[str] = []
    for part, stem in enumerate([*instruments, "only in the mixture"]):
        files = [song.parts[part] for song in songs if part < len(song.parts) and song.parts[part]]
        ways = Counter(" + ".join(path.stem for path in paths) for paths in files)
        del ways[next((way for way in ways if way.casefold() == stem.casefold()), "")]
        lines += _counted(f"{stem} =", ways, len(songs))
    left_out = Counter(path.name for song in songs for path in song.left_out)
    return [*lines, *_counted("left out, being in other files by their names:", left_out, len(songs))]


def _counted(label: str, ways: Counter[str], songs: int) -> Iterator[str]:
    """List the most common compositions, with the number of songs of each."""
    for way, number in ways.most_common(SHOWN):
        yield f"{label} {way}" + (f" in {number} of {songs} songs" if number < songs else "")
    if len(ways) > SHOWN:
        yield f"{label} … in {len(ways) - SHOWN} more ways"


def read(path: Path, start: int, length: int, channels: int) -> Audio:
    """Read `length` samples from `start`, `(s, t)`, with silence after the end of the file.

    Stereo is averaged to mono; mono is repeated to stereo.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            file.seek(min(start, file.frames))
            samples = cast("Audio", file.read(length, dtype="float32", always_2d=True))
            missing = min(length, file.frames - min(start, file.frames)) - len(samples)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if missing:
        raise ValueError(f"{path} cannot be read: {missing} samples less than its header says")
    return fitted(samples, length, channels)


def fitted(samples: Audio, length: int, channels: int) -> Audio:
    """Convert `(t, s)` to `(s, t)` with this length, padded with silence, and this number of channels."""
    audio: Audio = np.pad(samples, ((0, length - len(samples)), (0, 0))).T
    if audio.shape[0] == channels:
        return audio
    matched: Audio = audio.mean(axis=0, keepdims=True).repeat(channels, axis=0)
    return matched


def read_parts(paths: Sequence[Path], start: int, length: int, channels: int, reading: Read = read) -> Audio:
    """Read and sum files, `(s, t)`."""
    return total([reading(path, start, length, channels) for path in paths])


def total(audio: Sequence[Audio]) -> Audio:
    """Return the sum of stems."""
    return cast("Audio", np.sum(audio, axis=0, dtype=np.float32))


def read_song(song: Song, targets: Sequence[int], channels: int, reading: Read = read) -> tuple[Tensor, Tensor]:
    """Read a whole song: the mixture, `(s, t)`, from its own file where there is one, and stems, `(n, s, t)`."""
    silence = np.zeros((channels, song.length), np.float32)
    stems = np.stack(
        [read_parts(paths, 0, song.length, channels, reading) if paths else silence for paths in song.parts]
    )
    mixture = stems.sum(0) if song.mixture is None else reading(song.mixture, 0, song.length, channels)
    return tensor_of(mixture), tensor_of(stems[list(targets)])
