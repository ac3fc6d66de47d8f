"""One song: read, converted, separated by one model or several, and given back at its own rate, all in blocks.

No song is ever in memory as a whole. Axis letters: n stem, s audio channel, t sample.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.ensemble import HOP, Ensemble, combine_streams, uses_spectra
from hunterFormsBS.separation import Progress, stems_of
from hunterFormsBS.songs.parts import Part, Region, clock
from hunterFormsBS.songs.rates import Resampler
from hunterFormsBS.songs.reading import AudioFile
from hunterFormsBS.songs.settings import Settings
from hunterFormsBS.songs.threads import side_by_side

__all__ = ["Combination", "Separator", "separate_song"]

Report = Callable[[int, int, int], object]


class Separator(NamedTuple):
    """A model, and how songs are separated with it.

    Parameters
    ----------
    model : Callable[[Tensor], Tensor]
        `(b, s, t)` to `(b, n, s, t)`.
    settings : Settings
    order : Sequence[int] | None
        Which of its stems, in which order. None: all.
    """

    model: Callable[[Tensor], Tensor]
    settings: Settings
    order: Sequence[int] | None = None


class Combination(NamedTuple):
    """How the stems of several models become one; see `hunterFormsBS.ensemble.combine`."""

    kind: Ensemble = "avg_wave"
    weights: Sequence[float] | None = None


def separate_song(
    separators: Sequence[Separator],
    audio: AudioFile,
    *,
    combination: Combination = Combination(),  # noqa: B008  # it cannot change
    rests: Sequence[Sequence[int]] = (),
    part: Part = Part(),  # noqa: B008  # it cannot change
    report: Report | None = None,
) -> Generator[Tensor]:
    """Separate a song block by block.

    Parameters
    ----------
    separators : Sequence[Separator]
        One, or several whose stems are the same.
    audio : AudioFile
    combination : Combination
        Of several separators.
    rests : Sequence[Sequence[int]]
        What comes after the stems: for each of them the mixture minus the stems of these numbers.
    part : Part
        What of the song is separated. The models see what lies around it.
    report : Callable[[int, int, int], object] | None
        Called with the number of a separator, its chunks done, and all of its chunks as far as they are known.

    Yields
    ------
    stems : Tensor
        `(n, s, t)`, at the rate, with the channels and, altogether, with the length of the song or its part.

    Raises
    ------
    ValueError
        If the song ends before the part begins.
    """
    first, last = part.samples(audio.sample_rate)
    wide = _whole_frames(first, last) if len(separators) > 1 and uses_spectra(combination.kind) else (first, last)
    passing = [
        _Passing(audio, *wide, begin=first, keep=bool(rests) and not number) for number in range(len(separators))
    ]
    stems = _separated_by_all(separators, audio, combination, passing, report, rests)
    skip, left = first - wide[0], last - first
    for block in stems:
        wanted = block[..., skip : skip + int(min(left, block.shape[-1]))]
        skip = max(0, skip - block.shape[-1])
        left -= wanted.shape[-1]
        if wanted.shape[-1]:
            yield wanted


def _whole_frames(first: int, last: float) -> tuple[int, float]:
    """Return a part that begins and ends with frames of the ensemble's spectra, one more at either end."""
    end = last if last == math.inf else (math.ceil(last / HOP) + 1) * HOP
    return max(0, first // HOP - 1) * HOP, end


def _separated_by_all(
    separators: Sequence[Separator],
    audio: AudioFile,
    combination: Combination,
    passing: Sequence[_Passing],
    report: Report | None,
    rests: Sequence[Sequence[int]],
) -> Generator[Tensor]:
    """Yield the combined stems of samples of a song, and what they leave of it."""
    streams = [
        _separated(separator, audio, blocks, False if report is None else _reporter(report, number))
        for number, (separator, blocks) in enumerate(zip(separators, passing, strict=True))
    ]
    combined: Iterable[Tensor] = streams[0]
    if len(streams) > 1:
        combined = combine_streams(streams, combination.kind, combination.weights)
    for stems in combined:
        if rests:
            mixture = passing[0].take(stems.shape[-1])
            left = [reduce(torch.sub, [stems[number] for number in without], mixture) for without in rests]
            yield torch.cat([stems, torch.stack(left)])
        else:
            yield stems


def _reporter(report: Report, number: int) -> Progress:
    return lambda done, total, /: report(number, done, total)


class _Passing:
    """The blocks of a song on their way to a model, counted, and kept where they are asked for again.

    Stems are those of samples `first` to before `last`, which the part of the song begins within, at `begin`.
    """

    def __init__(self, audio: AudioFile, first: int, last: float, *, begin: int, keep: bool) -> None:
        self.begin = begin
        self.first = first
        self.last = last
        self.length = 0
        self._audio = audio
        self._keep = keep
        self._kept: deque[Tensor] = deque()

    def __iter__(self) -> Iterator[Tensor]:
        for block in self._audio.blocks():
            begun, self.length = self.length, self.length + block.shape[-1]
            if self._keep and self.length > self.first:
                self._kept.append(block[:, max(0, self.first - begun) :])
            yield block
        if self.begin and self.length <= self.begin:
            rate = self._audio.sample_rate
            raise ValueError(
                f"the part begins at {clock(self.begin / rate)}, but the song ends at {clock(self.length / rate)}: "
                "begin earlier"
            )

    def take(self, count: int) -> Tensor:
        """Return the next samples."""
        taken: list[Tensor] = []
        while count:
            block = self._kept.popleft()
            if block.shape[-1] > count:
                self._kept.appendleft(block[:, count:])
            taken.append(block[:, :count])
            count -= taken[-1].shape[-1]
        return torch.cat(taken, dim=-1)


class _Level(NamedTuple):
    mean: float
    deviation: float


def _separated(
    separator: Separator, audio: AudioFile, blocks: _Passing, progress: bool | Progress
) -> Generator[Tensor]:
    """Yield the stems of one model at the rate, with the channels and the length of the song."""
    settings = separator.settings
    level = _level(_resampled(audio.blocks(), audio, settings.sample_rate)) if settings.normalize else None
    resampled = _resampled(blocks, audio, settings.sample_rate)
    if level is not None:
        resampled = ((block - level.mean) / level.deviation for block in resampled)
    length = None if audio.length is None else math.ceil(audio.length * settings.sample_rate / audio.sample_rate)
    region = Region.around(blocks.first, blocks.last, audio.sample_rate, settings.sample_rate)
    parameters = replace(settings.parameters, start=region.start, end=region.end)
    stems: Iterable[Tensor] = stems_of(separator.model, resampled, parameters, length=length, progress=progress)
    if separator.order is not None:
        stems = (block[list(separator.order)] for block in stems)
    if audio.channels == 1:
        stems = (block.mean(dim=1, keepdim=True) for block in stems)  # A stereo model returns two channels for mono.
    for block in _of_part(_resampled_stems(stems, audio, settings.sample_rate), blocks, region.skip):
        yield block if level is None else block.mul_(level.deviation).add_(level.mean)


def _resampled(blocks: Iterable[Tensor], audio: AudioFile, sample_rate: int) -> Generator[Tensor]:
    """Give blocks of the song the sample rate of a model, in which it has at least one sample."""
    convert = Resampler(audio.sample_rate, sample_rate)
    given = 0
    for block in map(convert, blocks):
        given += block.shape[-1]
        yield block
    rest = convert(torch.zeros(audio.channels, 0), last=True)
    yield rest if given or rest.shape[-1] else torch.zeros(audio.channels, 1)


def _resampled_stems(stems: Iterable[Tensor], audio: AudioFile, sample_rate: int) -> Generator[Tensor]:
    """Give stems `(n, s, t)` of a model the sample rate of the song."""
    if sample_rate == audio.sample_rate:
        yield from stems
        return
    converters: list[Resampler] = []
    for block in stems:
        converters = converters or [Resampler(sample_rate, audio.sample_rate) for _ in block]
        yield torch.stack(side_by_side(_converted, converters, block))
    yield torch.stack(side_by_side(_ended, converters, [audio.channels] * len(converters)))


def _converted(convert: Resampler, stem: Tensor) -> Tensor:
    return convert(stem)


def _ended(convert: Resampler, channels: int) -> Tensor:
    return convert(torch.zeros(channels, 0), last=True)


def _of_part(stems: Iterable[Tensor], blocks: _Passing, skip: int) -> Generator[Tensor]:
    """Leave out samples before the part, and cut off or fill up its end where conversions add or lose a few."""
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
