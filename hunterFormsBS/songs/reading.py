"""Songs read block by block: by libsndfile what it reads, by FFmpeg all the rest."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.printable import printable
from hunterFormsBS.songs import decoding, rates
from hunterFormsBS.songs.headers import Header, read_header

FRAMES_PER_READ = 1 << 15
UNKNOWN = 1 << 62
"""From here on a number of samples is libsndfile's way of saying that it does not know."""

SLACK = 0.1
"""Seconds that a compressed file may be shorter than its header says, because encoders round up to whole frames."""


class AudioFile(NamedTuple):
    """An audio file that can be read; `open_audio` makes one.

    Parameters
    ----------
    path : Path
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

    path: Path
    sample_rate: int
    channels: int
    length: int | None = None
    stated: float | None = None
    header: Header = Header()
    stream: int = 1
    layout: str | None = None
    by_ffmpeg: bool = False

    def blocks(self) -> Iterator[Tensor]:
        """Read the file from its beginning to its end.

        A warning is given if it ends before its header says.

        Yields
        ------
        audio : Tensor
            `(s, t)`, float32, full scale at 1.

        Raises
        ------
        OSError
            If it cannot be opened.
        ValueError
            If it cannot be decoded, holds no samples, or has samples that are not finite.
        """
        done = 0
        for block in self._by_ffmpeg() if self.by_ffmpeg else self._by_libsndfile():
            low, high = torch.aminmax(block)
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                bad = torch.isfinite(block).all(dim=0).logical_not()
                first = done + int(bad.nonzero()[0])
                raise ValueError(
                    f"{printable(self.path)} has NaN or infinity at {first / self.sample_rate:.3f} s: "
                    "repair or cut out those samples"
                )
            done += block.shape[-1]
            yield block
        self._check_end(done)

    def _by_ffmpeg(self) -> Iterator[Tensor]:
        return decoding.decode(self.path, self.stream, layout=self.layout)

    def _by_libsndfile(self) -> Iterator[Tensor]:
        soundfile = _soundfile()
        with _open_patched(self.path, self.header) as file, soundfile.SoundFile(file) as sound:
            done = 0
            while True:
                try:
                    samples = sound.read(FRAMES_PER_READ, dtype="float32", always_2d=True)
                except (soundfile.SoundFileError, AssertionError) as error:
                    if file.ended:  # a compressed file that is cut off; FFmpeg reads its last block as far as it goes
                        yield from self._rest_by_ffmpeg(done)
                        return
                    raise ValueError(
                        f"{printable(self.path)} is damaged at {done / self.sample_rate:.1f} s: "
                        f"copy or download it again ({printable(error)})"
                    ) from error
                if not len(samples):
                    return
                done += len(samples)
                yield torch.as_tensor(samples).T.contiguous()  # (t s) -> (s t)

    def _rest_by_ffmpeg(self, done: int) -> Iterator[Tensor]:
        """Read what comes after the first samples, or nothing where PyAV is not installed."""
        with suppress(ImportError, decoding.NotDecodable):
            for block in decoding.decode(self.path):
                skipped = min(done, block.shape[-1])
                done -= skipped
                if skipped < block.shape[-1]:
                    yield block[:, skipped:]

    def _check_end(self, done: int) -> None:
        """Compare what was read with what the header says."""
        if not done:
            raise ValueError(
                f"{printable(self.path)} is damaged, none of its samples can be decoded: copy or download it again"
            )
        seconds = done / self.sample_rate
        missing = (self.stated or 0) - seconds
        if missing > SLACK or (missing > 0 and self.header.cut_off):
            warnings.warn(
                f"{printable(self.path)} ends after {duration(seconds)}, but its header says {duration(self.stated or 0)}: "
                "it is cut off or damaged, and what is there is separated",
                stacklevel=2,
            )
        elif self.header.cut_off:
            warnings.warn(
                f"{printable(self.path)} is cut off after {duration(seconds)}, and its format does not say how long it "
                "was: what is there is separated",
                stacklevel=2,
            )


def open_audio(path: Path, *, stream: int = 1, downmix: bool = False) -> AudioFile:
    """Read the header of an audio file.

    Parameters
    ----------
    path : Path
    stream : int
        Which audio stream, counted from 1; files that libsndfile reads have one.
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
    if path.is_dir():
        raise IsADirectoryError(f"{printable(path)} is a folder: pass the files in it")
    with path.open("rb") as file:
        if not file.read(1):
            raise ValueError(f"{printable(path)} is empty (0 bytes): copy or download it again")
    audio = _probe_libsndfile(path) if stream == 1 else None
    if audio is None:
        audio = _probe_ffmpeg(path, stream)
    if not rates.MINIMUM <= audio.sample_rate <= rates.MAXIMUM:
        raise ValueError(
            f"{printable(path)} states a sample rate of {audio.sample_rate} Hz, which is not within "
            f"{rates.MINIMUM} to {rates.MAXIMUM} Hz: correct its header"
        )
    if audio.channels > 2:
        if not downmix:
            raise ValueError(
                f"{printable(path)} has {audio.channels} channels, but at most 2 can be separated: mix it down with "
                "--downmix, or with ffmpeg -i FILE -ac 2 mixture.wav"
            )
        mixed = _probe_ffmpeg(path, stream)
        return mixed._replace(channels=2, layout="stereo", length=audio.length, stated=audio.stated)
    return audio


def duration(seconds: float) -> str:
    """Return a duration for people: `0.25 s`, `75.0 s`, `1:02:03`."""
    if seconds < 600:
        return f"{seconds:.2f} s" if seconds < 60 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _probe_libsndfile(path: Path) -> AudioFile | None:
    """Read a header by libsndfile; return None if FFmpeg has to try."""
    soundfile = _soundfile()
    header = read_header(path)
    try:
        with _open_patched(path, header) as file, soundfile.SoundFile(file) as sound:
            length, sample_rate, channels = int(sound.frames), int(sound.samplerate), int(sound.channels)
    # TypeError: a file without a header, to judge by its name, whose sample rate would have to be stated.
    except (soundfile.SoundFileError, TypeError):
        return None
    if length >= UNKNOWN:
        return None  # libsndfile would lose the last block of it
    if length < 1:
        raise ValueError(f"{printable(path)} holds no samples: record or export it again")
    stated = None
    if header.unsized is None and sample_rate > 0:
        stated = (length if header.length is None else header.length) / sample_rate
    return AudioFile(path, sample_rate, channels, length, stated, header)


def _probe_ffmpeg(path: Path, stream: int) -> AudioFile:
    """Read a header by FFmpeg."""
    hint = "for example with ffmpeg -i FILE mixture.wav"
    try:
        found = decoding.probe(path, stream)
    except ImportError as error:
        raise ImportError(
            f'{printable(path)} is not audio that libsndfile reads: install PyAV, pip install "hunterFormsBS[formats]", '
            f"or convert it, {hint}"
        ) from error
    except decoding.NotDecodable as error:
        raise ValueError(f"{error}: convert it, {hint}") from error
    length = None if found.duration is None else round(found.duration * found.sample_rate)
    return AudioFile(path, found.sample_rate, found.channels, length, found.duration, stream=stream, by_ffmpeg=True)


class _PatchedFile(io.RawIOBase):
    """A file for libsndfile, which reads an endless size where the header has none, and tells whether it came to its end.

    libsndfile opens files by names in the encoding of the system; this also reads those whose names are not in it.
    """

    def __init__(self, path: Path, unsized: int | None) -> None:
        self.file = path.open("rb")
        self.unsized = unsized
        self.ended = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any, /) -> int:
        position = self.file.tell()
        view = memoryview(buffer).cast("B")
        count = self.file.readinto(view)
        self.ended = self.ended or count < len(view)
        if self.unsized is not None:
            for offset in range(max(self.unsized, position), min(self.unsized + 4, position + count)):
                view[offset - position] = 0xFF
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def _open_patched(path: Path, header: Header) -> _PatchedFile:
    return _PatchedFile(path, header.unsized)


def _soundfile() -> ModuleType:
    try:
        return import_module("soundfile")
    except ImportError as error:
        raise ImportError(
            'to read and write audio files, install soundfile: pip install "hunterFormsBS[separation]"'
        ) from error
