"""One song: read, converted, separated by one model or several, and given back at its own rate, all in blocks.

No song is ever in memory as a whole. Axis letters: n stem, s audio channel, t sample.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.ensemble import Ensemble, combine_streams
from hunterFormsBS.separation import Progress, stems_of
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
    residual: bool = False,
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
    residual : bool
        Whether the mixture minus all stems comes as the last stem.
    report : Callable[[int, int, int], object] | None
        Called with the number of a separator, its chunks done, and all of its chunks as far as they are known.

    Yields
    ------
    stems : Tensor
        `(n, s, t)`, at the rate, with the channels and, altogether, with the length of the song.
    """
    passing = [_Passing(audio.blocks(), keep=residual and not number) for number in range(len(separators))]
    streams = [
        _separated(separator, audio, blocks, False if report is None else _reporter(report, number))
        for number, (separator, blocks) in enumerate(zip(separators, passing, strict=True))
    ]
    combined: Iterable[Tensor] = streams[0]
    if len(streams) > 1:
        combined = combine_streams(streams, combination.kind, combination.weights)
    for stems in combined:
        if residual:
            rest = passing[0].take(stems.shape[-1])
            for stem in stems:
                rest -= stem
            yield torch.cat([stems, rest[None]])
        else:
            yield stems


def _reporter(report: Report, number: int) -> Progress:
    return lambda done, total, /: report(number, done, total)


class _Passing:
    """The blocks of a song on their way to a model, counted, and kept where they are asked for again."""

    def __init__(self, blocks: Iterable[Tensor], *, keep: bool) -> None:
        self.length = 0
        self._source = blocks
        self._keep = keep
        self._kept: deque[Tensor] = deque()

    def __iter__(self) -> Iterator[Tensor]:
        for block in self._source:
            self.length += block.shape[-1]
            if self._keep:
                self._kept.append(block)
            yield block

    def take(self, count: int) -> Tensor:
        """Return the next samples, in a tensor that may be changed."""
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
    stems: Iterable[Tensor] = stems_of(
        separator.model, resampled, settings.parameters, length=length, progress=progress
    )
    if separator.order is not None:
        stems = (block[list(separator.order)] for block in stems)
    if audio.channels == 1:
        stems = (block.mean(dim=1, keepdim=True) for block in stems)  # A stereo model returns two channels for mono.
    for block in _of_length(_resampled_stems(stems, audio, settings.sample_rate), blocks):
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


def _of_length(stems: Iterable[Tensor], blocks: _Passing) -> Generator[Tensor]:
    """Cut off or fill up stems at the end of the song, by the few samples that conversions add or lose."""
    given, shape = 0, torch.Size((0, 0))
    for block in stems:
        part = block[..., : blocks.length - given]
        shape = part.shape[:-1]
        given += part.shape[-1]
        if part.shape[-1]:
            yield part
    if given < blocks.length:
        yield torch.zeros(*shape, blocks.length - given)


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
