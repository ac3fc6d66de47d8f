"""A song through one model: at the rate and with the channels that it takes, and back at those of the song."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.separation import Progress, stems_of
from hunterFormsBS.songs.graph import Deferred, Separator
from hunterFormsBS.songs.parts import Region, clock
from hunterFormsBS.songs.rates import Resampler
from hunterFormsBS.songs.reading import AudioFile
from hunterFormsBS.songs.threads import side_by_side

__all__ = ["Passing", "separated"]


class Passing:
    """The blocks of a song on their way to a model, counted.

    Stems are those of samples `first` to before `last`; the part of the song begins at `begin`, between them.
    """

    def __init__(self, blocks: Iterator[Tensor], sample_rate: int, first: int, last: float, *, begin: int) -> None:
        self.first = first
        self.last = last
        self.length = 0
        self._blocks = blocks
        self._sample_rate = sample_rate
        self._begin = begin

    def __iter__(self) -> Iterator[Tensor]:
        for block in self._blocks:
            self.length += block.shape[-1]
            yield block
        if self._begin and self.length <= self._begin:
            rate = self._sample_rate
            raise ValueError(
                f"the part begins at {clock(self._begin / rate)}, but the song ends at {clock(self.length / rate)}: "
                "begin earlier"
            )


class _Level(NamedTuple):
    mean: float
    deviation: float


def separated(
    separator: Separator,
    audio: AudioFile,
    blocks: Passing,
    again: Callable[[], Iterator[Tensor]],
    progress: bool | Progress,
) -> Generator[Tensor]:
    """Yield the stems of one model at the rate, with the channels and the length of the song.

    `again` reads the song from its beginning, for a model that must know its level first.
    """
    settings = separator.settings
    model = separator.model.load() if isinstance(separator.model, Deferred) else separator.model
    level = _level(_resampled(again(), audio, settings.sample_rate)) if settings.normalize else None
    resampled = _resampled(blocks, audio, settings.sample_rate)
    if level is not None:
        resampled = ((block - level.mean) / level.deviation for block in resampled)
    length = None if audio.length is None else math.ceil(audio.length * settings.sample_rate / audio.sample_rate)
    region = Region.around(blocks.first, blocks.last, audio.sample_rate, settings.sample_rate)
    parameters = replace(settings.parameters, start=region.start, end=region.end)
    stems: Iterable[Tensor] = stems_of(model, resampled, parameters, length=length, progress=progress)
    if separator.order is not None:
        stems = (block[list(separator.order)] for block in stems)
    if audio.channels == 1:
        stems = (block.mean(dim=1, keepdim=True) for block in stems)  # A stereo model returns two channels for mono.
    for block in _of_part(_resampled_stems(stems, audio, settings.sample_rate), blocks, region.skip):
        yield block if level is None else block.mul_(level.deviation).add_(level.mean)


def _resampled(blocks: Iterable[Tensor], audio: AudioFile, sample_rate: int) -> Generator[Tensor]:
    """Convert blocks of the song to the sample rate of a model, at least one sample."""
    convert = Resampler(audio.sample_rate, sample_rate)
    given = 0
    for block in map(convert, blocks):
        given += block.shape[-1]
        yield block
    rest = convert.rest(audio.channels)
    yield rest if given or rest.shape[-1] else torch.zeros(audio.channels, 1)


def _resampled_stems(stems: Iterable[Tensor], audio: AudioFile, sample_rate: int) -> Generator[Tensor]:
    """Convert stems `(n, s, t)` of a model to the sample rate of the song."""
    if sample_rate == audio.sample_rate:
        yield from stems
        return
    converters: list[Resampler] = []
    for block in stems:
        converters = converters or [Resampler(sample_rate, audio.sample_rate) for _ in block]
        yield torch.stack(side_by_side(Resampler.__call__, converters, block))
    yield torch.stack(side_by_side(Resampler.rest, converters, [audio.channels] * len(converters)))


def _of_part(stems: Iterable[Tensor], blocks: Passing, skip: int) -> Generator[Tensor]:
    """Leave out samples before the part, and cut or pad its end where conversions add or lose a few."""
    given, shape = 0, torch.Size((0, 0))
    for block in stems:
        begun = block[..., skip:]
        skip = max(0, skip - block.shape[-1])
        shape, wanted = block.shape[:-1], int(min(blocks.last, blocks.length)) - blocks.first
        ready = begun[..., : max(0, wanted - given)]
        given += ready.shape[-1]
        if ready.shape[-1]:
            yield ready
    missing = int(min(blocks.last, blocks.length)) - blocks.first - given
    if missing > 0:
        yield torch.zeros(*shape, missing)


def _level(blocks: Iterable[Tensor]) -> _Level | None:
    """Return mean and standard deviation of the mono mix of a song, or None for silence."""
    count, mean, squares = 0, 0.0, 0.0
    for block in blocks:
        mono = block.double().mean(dim=0)
        if not len(mono):
            continue
        # Means and squares of two parts make those of both.
        step = float(mono.mean()) - mean
        share = len(mono) / (count + len(mono))
        squares += float((mono - mono.mean()).square().sum()) + step * step * count * share
        mean += step * share
        count += len(mono)
    level = _Level(mean, math.sqrt(squares / max(1, count)))
    return level if level.deviation > 1e-8 else None
