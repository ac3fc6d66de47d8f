"""Stems written block by block, as libsndfile writes them, into files of any size."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from hunterFormsBS.printable import printable
from hunterFormsBS.songs.rates import resampled

Format = Literal["wav", "flac", "mp3", "ogg", "opus"]

BYTES_OF_RIFF = 0xFFFF0000
"""A little under 4 GiB, to leave room for the headers."""

FRAMES_PER_WRITE = 1 << 14

SUBTYPES: dict[tuple[str, int | None], str] = {
    ("wav", 16): "PCM_16",
    ("wav", 24): "PCM_24",
    ("wav", 32): "FLOAT",
    ("flac", 16): "PCM_16",
    ("flac", 24): "PCM_24",
    ("mp3", None): "MPEG_LAYER_III",
    ("ogg", None): "VORBIS",
    ("opus", None): "OPUS",
}
"""How libsndfile calls each pair of a format and a bit depth that can be written; 32 bits are floating point."""

DEPTHS: dict[str, int | None] = {"wav": 32, "flac": 24, "mp3": None, "ogg": None, "opus": None}
"""The usual bit depth of each format; what is lossy has none."""

RATES: dict[str, tuple[int, ...]] = {
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "opus": (8000, 12000, 16000, 24000, 48000),
}
"""The sample rates that a format can have, if it cannot have any."""

HIGHEST_RATE = {"flac": 655_350, "ogg": 200_000}


class Encoding(NamedTuple):
    """Kind of a file.

    Parameters
    ----------
    format : Format
    bit_depth : int | None
        16, 24, or for wav 32, which is floating point; None for what is lossy.
    quality : float | None
        From 0, the smallest files, to 10, the best sound, for what is lossy. `None`: libsndfile's own choice.
    """

    format: Format = "wav"
    bit_depth: int | None = 32
    quality: float | None = None

    @property
    def clips(self) -> bool:
        """Whether values beyond full scale are cut off, when it is written or when it is played."""
        return self.bit_depth != 32

    def rate(self, sample_rate: int) -> int:
        """Return the sample rate that a file of this kind has: the next that the format can have."""
        rates = RATES.get(self.format)
        if rates is not None:
            return min((rate for rate in rates if rate >= sample_rate), default=max(rates))
        return min(sample_rate, HIGHEST_RATE.get(self.format, sample_rate))


class WritingError(OSError):
    """A stem could not be written, for lack of space or because of the disk."""


class StemWriter:
    """One file that is being written; use it in a with statement.

    Parameters
    ----------
    place : Path
        Where it is written.
    path : Path
        What messages call it.
    sample_rate : int
        Of the audio. A format that cannot have it gets the next one that it can have, `encoding.rate(sample_rate)`.
    channels : int
    encoding : Encoding
    length : int | None
        How many samples will come, about: a WAV file of more than 4 GiB is begun as RF64. One that becomes so large
        unexpectedly is copied once.
    """

    def __init__(
        self,
        place: Path,
        path: Path,
        *,
        sample_rate: int,
        channels: int,
        encoding: Encoding = Encoding(),  # noqa: B008  # it cannot change
        length: int | None = None,
    ) -> None:
        self.place = place
        self.path = path
        self.channels = channels
        self.encoding = encoding
        self.clipped = 0
        """How many values were beyond full scale and cut off, which 32-bit files never need."""
        self.peak = 0.0
        """The largest absolute value."""
        self.frames = 0
        self.sample_rate = encoding.rate(sample_rate)
        self._bytes_a_frame = channels * (encoding.bit_depth or 0) // 8
        self._large = self._too_large(length or 0)
        self._open()
        self._arriving: Tensor | None = None
        self._rated = iter(()) if self.sample_rate == sample_rate else resampled(self._arrivals(), sample_rate, self.sample_rate)
        self._same_rate = self.sample_rate == sample_rate
        self._last = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):
                self._close()
