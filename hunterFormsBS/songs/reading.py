"""Audio files read block by block: by libsndfile what it reads, by FFmpeg all the rest."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.printable import printable
from hunterFormsBS.songs.ffmpeg import NotDecodableError, decode_with_ffmpeg, probe_with_ffmpeg
from hunterFormsBS.songs.headers import Header, read_header
from hunterFormsBS.songs.writing import Sound, soundfile_module

__all__ = ["AudioFile", "duration", "probe_audio", "read_audio"]

FRAMES_PER_BLOCK = 1 << 18

LOWEST_RATE, HIGHEST_RATE = 1000, 768000  # Hz
SHORT_BY = 0.1
"""Seconds that a file may lack without a word: encoders round."""

UNKNOWN = 1 << 62
"""From here on a number of samples is libsndfile's way of saying that it does not know."""


class AudioFile(NamedTuple):
    """An audio file that can be read; `probe_audio` makes one.

    Parameters
    ----------
    pathFilename : Path
        Where it is read.
    name : str
        What messages call it.
    sample_rate : int
        In Hz.
    channels : int
        1 or 2, after mixing down.
    length : int | None
        Samples of each channel that the file seems to have; None if only reading tells.
    stated : float | None
        Duration in seconds by the header.
    header : Header
    stream : int
        Number of the audio stream, counted from 1.
    layout : str | None
        What FFmpeg mixes it down to.
    by_ffmpeg : bool
        Whether FFmpeg reads it, and not libsndfile.
    """

    pathFilename: Path
    name: str
    sample_rate: int
    channels: int
    length: int | None = None
    stated: float | None = None
    header: Header = Header()
    stream: int = 1
    layout: str | None = None
    by_ffmpeg: bool = False

    def blocks(self, frames: int = FRAMES_PER_BLOCK) -> Iterator[Tensor]:
        """Read the file from its beginning to its end, and warn if that comes before its header says.

        Yields
        ------
        audio : Tensor
            `(s, t)`, float32, full scale at 1, of about so many frames.

        Raises
        ------
        OSError
            If it cannot be opened.
        ValueError
            If it cannot be decoded, holds no samples, or has samples that are not finite.
        """
        place = 0
        for block in self._by_ffmpeg(frames) if self.by_ffmpeg else self._by_libsndfile(frames):
            self._check_finite(block, place)
            place += block.shape[-1]
            yield block
        self._check_end(place)

    def _by_ffmpeg(self, frames: int) -> Iterator[Tensor]:
        return decode_with_ffmpeg(self.pathFilename, frames, self.stream, layout=self.layout)

    def _by_libsndfile(self, frames: int) -> Iterator[Tensor]:
        soundfile = soundfile_module()
        with _PatchedFile(self.pathFilename, self.header.unsized) as file, Sound(file) as sound:
            place = 0
            while True:
                try:
                    samples = sound.read(frames)
                except (soundfile.SoundFileError, AssertionError) as error:
                    if (
                        file.ended
                    ):  # FFmpeg reads the last block of a compressed file that is cut off as far as it goes.
                        yield from self._rest_by_ffmpeg(place, frames)
                        return
                    raise ValueError(
                        f"{self.name} is damaged at {place / self.sample_rate:.1f} s: copy or download it again "
                        f"({printable(error)})"
                    ) from error
                if not len(samples):
                    return
                place += len(samples)
                yield torch.as_tensor(samples).T.contiguous()  # (t s) -> (s t)

    def _rest_by_ffmpeg(self, done: int, frames: int) -> Iterator[Tensor]:
        """Read what comes after the first samples, or nothing where PyAV is not installed."""
        place = 0
        with suppress(ImportError, NotDecodableError):
            for block in decode_with_ffmpeg(self.pathFilename, frames):
                skipped = min(max(0, done - place), block.shape[-1])
                place += block.shape[-1]
                if skipped < block.shape[-1]:
                    yield block[:, skipped:]
        if place >= (self.length or 0):
            self._warn(f"{self.name} is damaged after {duration(done / self.sample_rate)}: what can be decoded is used")

    def _check_finite(self, block: Tensor, place: int) -> None:
        finite = torch.isfinite(block).all(dim=0)
        if not bool(finite.all()):
            first = place + int(finite.logical_not().nonzero()[0])
            raise ValueError(
                f"{self.name} has NaN or infinity at {int(finite.logical_not().sum())} samples, the first at "
                f"{first / self.sample_rate:.3f} s: repair or cut out those samples"
            )

    def _check_end(self, place: int) -> None:
        """Compare what was read with what the header says."""
        if not place:
            raise ValueError(f"{self.name} is damaged, none of its samples can be decoded: copy or download it again")
        seconds = place / self.sample_rate
        missing = (self.stated or 0) - seconds
        if missing > SHORT_BY or (missing > 0 and self.header.cut_off):
            said = f"and its header says {duration(self.stated or 0)}"
        elif self.header.cut_off:
            said = "in the middle of what its format ends with"
        else:
            return
        self._warn(f"{self.name} ends after {duration(seconds)}, {said}: was it copied or downloaded whole?")

    def _warn(self, message: str) -> None:
        warnings.warn(message, stacklevel=4)


def probe_audio(
    pathFilename: Path, *, name: object = None, stream: int | None = None, downmix: bool = False
) -> AudioFile:
    """Read the header of an audio file.

    Parameters
    ----------
    pathFilename : Path
    name : object
        What messages call it. `None`: the path.
    stream : int | None
        Which audio stream, counted from 1.
    downmix : bool
        Mix more than two channels down to stereo by FFmpeg's standard matrix.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ImportError
        If a library is missing that reads it.
    ValueError
        If it is no audio file, is empty, or has a sample rate or a number of channels that cannot be separated.
    """
    called = printable(pathFilename if name is None else name)
    if pathFilename.is_dir():
        raise IsADirectoryError(f"{called} is a folder: pass the files in it")
    with pathFilename.open("rb") as file:
        if not file.read(1):
            raise ValueError(f"{called} is empty (0 bytes): copy or download it again")
    audio = _probe_libsndfile(pathFilename, called) if stream in (None, 1) else None
    if audio is None:
        audio = _probe_ffmpeg(pathFilename, called, stream or 1)
    if not LOWEST_RATE <= audio.sample_rate <= HIGHEST_RATE:
        raise ValueError(
            f"{called} says that it has {audio.sample_rate} samples a second, and audio has "
            f"{LOWEST_RATE} to {HIGHEST_RATE}: its header is damaged, or it is no music"
        )
    if audio.channels > 2:
        if not downmix:
            raise ValueError(
                f"{called} has {audio.channels} channels, but at most 2 can be separated: mix it down with --downmix, "
                "or for example with ffmpeg -i FILE -ac 2 mixture.wav"
            )
        mixed = _probe_ffmpeg(pathFilename, called, stream or 1)
        return mixed._replace(channels=2, layout="stereo", length=audio.length, stated=audio.stated)
    return audio


def read_audio(pathFilename: Path) -> tuple[Tensor, int]:
    """Read a whole file that `probe_audio` accepts.

    Returns
    -------
    audio : Tensor
        `(s, t)`, float32, full scale at 1.
    sample_rate : int

    Raises
    ------
    OSError, ValueError
        As `AudioFile.blocks`.
    """
    audio = probe_audio(pathFilename)
    return torch.cat(list(audio.blocks()), dim=-1), audio.sample_rate


def duration(seconds: float) -> str:
    """Return a duration for people: `0.25 s`, `75.0 s`, `1:02:03`."""
    if seconds < 600:
        return f"{seconds:.2f} s" if seconds < 60 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _probe_libsndfile(pathFilename: Path, name: str) -> AudioFile | None:
    """Read a header by libsndfile; return None if FFmpeg has to try."""
    soundfile = soundfile_module()
    header = read_header(pathFilename)
    try:
        with _PatchedFile(pathFilename, header.unsized) as file, Sound(file) as sound:
            (length, channels), sample_rate = sound.shape, sound.sample_rate
    # TypeError: a file without a header, to judge by its name, whose sample rate would have to be stated.
    except (soundfile.SoundFileError, TypeError):
        return None
    if length >= UNKNOWN:
        return None  # libsndfile would lose the last block of it.
    if length < 1:
        raise ValueError(f"{name} holds no samples: record or export it again")
    stated = None
    if header.unsized is None and sample_rate > 0:
        stated = (length if header.length is None else header.length) / sample_rate
    return AudioFile(pathFilename, name, sample_rate, channels, length, stated, header)


def _probe_ffmpeg(pathFilename: Path, name: str, stream: int) -> AudioFile:
    """Read a header by FFmpeg."""
    hint = "for example with ffmpeg -i FILE mixture.wav"
    try:
        found = probe_with_ffmpeg(pathFilename, stream, name=name)
    except ImportError as error:
        raise ValueError(f"{name} is not audio that libsndfile reads, and {error}, or convert it, {hint}") from error
    except NotDecodableError as error:
        raise ValueError(f"{error}: copy or download it again, or convert it, {hint}") from error
    header, stated = read_header(pathFilename), found.duration
    if header.length is not None and found.sample_rate > 0:
        stated = header.length / found.sample_rate
    length = None if stated is None else max(1, round(stated * found.sample_rate))
    return AudioFile(
        pathFilename, name, found.sample_rate, found.channels, length, stated, header, stream=stream, by_ffmpeg=True
    )


class _PatchedFile(io.RawIOBase):
    """A file for libsndfile, with an endless size where the header has none; it tells whether its end was reached.

    libsndfile opens files by names in the encoding of the system; this also reads those whose names are not in it.
    """

    def __init__(self, pathFilename: Path, unsized: int | None) -> None:
        self.file = pathFilename.open("rb")
        # RF64 has the size elsewhere as well, where none was set either.
        self.patches = {} if unsized is None else {0: b"RIFF", unsized: b"\xff\xff\xff\xff"}
        self.ended = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        # Damaged headers lead to places before the file: libsndfile finds out by the place that it gets.
        with suppress(OSError, ValueError):
            self.file.seek(offset, whence)
        return self.file.tell()

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any, /) -> int:
        position = self.file.tell()
        view = memoryview(buffer).cast("B")
        count = self.file.readinto(view)
        self.ended = self.ended or count < len(view)
        for place, right in self.patches.items():
            for offset in range(max(place, position), min(place + 4, position + count)):
                view[offset - position] = right[offset - place]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()
