"""Parts of songs: in seconds for people, in samples for streams at any rate."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

__all__ = ["PREVIEW", "Part", "Region", "clock", "reach", "seconds"]

PREVIEW = 30.0
"""Seconds of a preview."""

MARGIN = 4096
"""Samples, at the lower of two rates, that a conversion between them looks to either side, at most."""


class Part(NamedTuple):
    """The part of a song that is separated, in seconds."""

    start: float = 0.0
    end: float = math.inf

    def samples(self, sample_rate: int) -> tuple[int, float]:
        """Return the first sample and the one after the last, which is infinity at the end of the song."""
        return round(self.start * sample_rate), self.end if self.end == math.inf else round(self.end * sample_rate)


class Region(NamedTuple):
    """The samples that a model has to separate for a part of a song at another rate."""

    start: int
    """First sample, at the rate of the model."""
    end: int | None
    """The one after the last; None at the end of the song."""
    skip: int
    """Samples, at the rate of the song, between the beginning of the region and that of the part."""

    @classmethod
    def around(cls, first: int, last: float, song_rate: int, model_rate: int) -> Region:
        """Return the region for samples `first` to before `last` of a song.

        Where rates differ it begins where samples of both coincide, so that the conversion back meets the same phases
        as in the whole song, and reaches further than the filter of the conversion.
        """
        if song_rate == model_rate:
            return cls(first, None if last == math.inf else int(last), 0)
        unit = math.gcd(song_rate, model_rate)  # Samples coincide so often in a second.
        song, model = song_rate // unit, model_rate // unit
        margin = math.ceil(MARGIN * unit / min(song_rate, model_rate))
        begin = max(0, first // song - margin)
        end = None if last == math.inf else (math.ceil(last / song) + margin) * model
        return cls(begin * model, end, first - begin * song)


def reach(first: int, last: float, song_rate: int, model_rate: int, chunk_size: int) -> tuple[int, float]:
    """Return which samples of a song decide the stems of samples `first` to before `last`: those of all chunks near.

    `chunk_size` counts samples at the rate of the model, and the end of the song is infinity.
    """
    region = Region.around(first, last, song_rate, model_rate)
    # Besides those of the chunks, samples within the filter of the conversion to the rate of the model.
    margin = 0 if song_rate == model_rate else math.ceil(MARGIN * song_rate / min(song_rate, model_rate)) + 1
    begin = math.floor((region.start - chunk_size) * song_rate / model_rate) - margin
    end = math.inf if region.end is None else math.ceil((region.end + chunk_size) * song_rate / model_rate) + margin
    return max(0, begin), end


def seconds(text: str) -> float:
    """Return the seconds that a text such as `90`, `1:30` or `1:02:03.5` means.

    Raises
    ------
    ValueError
        If it means none.
    """
    if not re.fullmatch(r"(\d{1,9}:)?(\d{1,9}:)?\d{1,9}(\.\d{0,9})?", text, re.ASCII):
        raise ValueError(f"must be seconds or m:ss, such as 90 or 1:30, but is {text[:40]!r}")
    total = 0.0
    for number in text.split(":"):
        total = total * 60 + float(number)
    return total


def clock(value: float) -> str:
    """Return seconds as m:ss."""
    minutes, rest = divmod(round(value, 2), 60)
    return f"{minutes:.0f}:{rest:05.2f}".removesuffix(".00")
