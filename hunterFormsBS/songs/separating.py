"""One song: read, converted, separated by the models of a graph of steps, and given back at its own rate, in blocks.

Blocks flow through all steps side by side, so no song is ever in memory as a whole. Signals that are needed again from
their beginning are kept in temporary files. Axis letters: n stem, s audio channel, t sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from functools import reduce
from tempfile import TemporaryFile
from typing import IO, TypeAlias

import torch
from torch import Tensor

from hunterFormsBS.ensemble import combine_streams
from hunterFormsBS.overlapAdd import aligned, branches
from hunterFormsBS.separation import Progress
from hunterFormsBS.songs.graph import ALL, Graph, Rest, Signal
from hunterFormsBS.songs.keeping import Kept
from hunterFormsBS.songs.oneModel import Passing, separated
from hunterFormsBS.songs.parts import Part
from hunterFormsBS.songs.reading import AudioFile

__all__ = ["separate_song"]

Report: TypeAlias = Callable[[int, int, int], object]


def separate_song(
    graph: Graph,
    audio: AudioFile,
    *,
    part: Part = Part(),  # noqa: B008  # it cannot change
    report: Report | None = None,
    scratch: Callable[[], IO[bytes]] = TemporaryFile,
) -> Generator[Tensor]:
    """Separate a song block by block.

    Parameters
    ----------
    part : Part
        What of the song is separated. The models see what lies around it.
    report : Callable[[int, int, int], object] | None
        Called with the number of a separator, counted through all steps, its chunks done, and all of its chunks as far
        as they are known.
    scratch : Callable[[], IO[bytes]], default tempfile.TemporaryFile
        Opens a file for signals that are kept: with `one_model_at_a_time`, and where a model that normalizes its
        input gets it from another one.

    Yields
    ------
    stems : Tensor
        `(n, s, t)`, the outputs in their order, at the rate, with the channels and, altogether, with the length of the
        song or its part.

    Raises
    ------
    ValueError
        If the song ends before the part begins.
    """
    with ExitStack() as files:
        run = _Run(graph, audio, part, report, lambda: files.enter_context(scratch()))
        for blocks in aligned(run.outputs(), alike=False):
            yield blocks[0] if len(blocks) == 1 else torch.cat(blocks)


class _Run:
    """The streams of one song through a graph.

    A stream with several readers is read once; its blocks are held from the first reader to the last. If signals are in
    files, the steps before them run one after the other, keep their stems in files, too, and each reads the song anew.
    """

    def __init__(
        self, graph: Graph, audio: AudioFile, part: Part, report: Report | None, scratch: Callable[[], IO[bytes]]
    ) -> None:
        self._graph = graph
        self._audio = audio
        self._report = report
        self._part = part.samples(audio.sample_rate)
        self._regions = self._needed()
        self._rests = self._find_rests()
        self._readers = self._count_readers()
        self._branches: dict[int | None, list[Iterator[Tensor]]] = {}
        self._kept: dict[int, list[Kept]] = {}
        self._side_by_side = not (before := self._before_files())
        for number in before:  # in order, so that each finds its input
            streams = self._estimates(number) if graph.one_model_at_a_time else [self._combined(number)]
            self._kept[number] = [Kept(stream, scratch) for stream in streams]

    def outputs(self) -> list[Generator[Tensor]]:
        """Return the streams `(n, s, t)` of the outputs."""
        return [self._signal(signal, *self._part) for signal in self._graph.outputs]

    def _needed(self) -> list[tuple[int, float]]:
        """Return which samples of its signals each step has to give."""
        needed: list[list[tuple[int, float]]] = [[] for _ in self._graph.steps]
        for signal in self._graph.outputs:
            needed[signal.step].append(self._part)
        for number, step in reversed([*enumerate(self._graph.steps)]):
            first, last = zip(*needed[number], strict=True)
            needed[number] = [(min(first), max(last))]
            if step.source is not None:
                needed[step.source.step].append(step.reach(*needed[number][0], self._audio.sample_rate))
        return [region for (region,) in needed]

    def _find_rests(self) -> dict[int, list[Rest]]:
        """Return the rests of each step that has any, each once."""
        rests: dict[int, list[Rest]] = {}
        for signal in (*self._graph.outputs, *(source for _, _, source in self._graph.steps if source is not None)):
            if isinstance(signal.stem, Rest) and signal.stem not in rests.setdefault(signal.step, []):
                rests[signal.step].append(signal.stem)
        return rests

    def _count_readers(self) -> dict[int | None, int]:
        """Return how many read each step, and, as None, the mixture."""
        graph = self._graph
        readers: dict[int | None, int] = dict.fromkeys([None, *range(len(graph.steps))], 0)
        for signal in graph.outputs:
            readers[signal.step] += 1
        for number, step in enumerate(graph.steps):
            source = None if step.source is None else step.source.step
            readers[source] += len(step.separators) + (number in self._rests)
        return readers

    def _before_files(self) -> list[int]:
        """Return the steps that are kept in files: all, or those before a step that normalizes its input."""
        steps = self._graph.steps
        if self._graph.one_model_at_a_time:
            return [*range(len(steps))]
        before: set[int] = set()
        for number, step in reversed([*enumerate(steps)]):
            if step.source is not None and (step.normalizes or number in before):
                before.add(step.source.step)
        return sorted(before)

    def _signal(self, signal: Signal, first: int, last: float) -> Generator[Tensor]:
        """Yield these samples of a signal, `(n, s, t)`."""
        stem, rests = signal.stem, self._rests.get(signal.step, [])
        for block in _cut(self._read(signal.step), first - self._regions[signal.step][0], last - first):
            stems = len(block) - len(rests)
            first_row = stems + rests.index(stem) if isinstance(stem, Rest) else 0 if stem == ALL else stem
            yield block[first_row : stems if stem == ALL else first_row + 1]

    def _read(self, number: int | None) -> Iterator[Tensor]:
        """Return a stream of all that a step gives, `(n, s, t)`, or of the mixture, `(s, t)`."""
        if number in self._kept and not self._graph.one_model_at_a_time:
            return self._kept[number][0].blocks()

        def begin() -> Iterator[Tensor]:
            return self._audio.blocks() if number is None else self._combined(number)

        if not self._side_by_side and (number is None or number in self._kept):
            return begin()
        if number not in self._branches:
            self._branches[number] = branches(begin(), self._readers[number])
        return self._branches[number].pop()

    def _song(self, source: Signal | None) -> Iterator[Tensor]:
        """Return the input of a step, `(s, t)`, from the first sample of the song, silent where none is needed."""
        if source is None:
            return self._read(None)
        region = self._regions[source.step]
        blocks = (block[0] for block in self._signal(source, *region))
        return blocks if region == (0, math.inf) else _within_silence(blocks, *region, self._audio.blocks())

    def _combined(self, number: int) -> Generator[Tensor]:
        """Yield what a step gives: its stems, and then the rests of its input that anybody reads."""
        first, last = self._regions[number]
        step = self._graph.steps[number]
        estimates = [kept.blocks() for kept in self._kept.get(number, ())] or self._estimates(number)
        combined: Iterable[Tensor] = estimates[0]
        if len(estimates) > 1:
            combined = combine_streams(estimates, *step.combination)
        stems = _cut(combined, first - step.whole(first, last)[0], last - first)
        if number not in self._rests:
            yield from stems
            return
        for block, song in aligned([stems, _cut(self._song(step.source), first, last - first)], alike=False):
            without = [range(len(block)) if rest.without is None else rest.without for rest in self._rests[number]]
            rests = [reduce(torch.sub, [block[stem] for stem in each], song) for each in without]
            yield torch.cat([block, torch.stack(rests)])

    def _estimates(self, number: int) -> list[Iterator[Tensor]]:
        """Return the streams of a step's models, `(n, s, t)`."""
        step = self._graph.steps[number]
        whole = step.whole(*self._regions[number])
        before = sum(len(step.separators) for step in self._graph.steps[:number])
        return [
            separated(
                separator,
                self._audio,
                Passing(self._song(step.source), self._audio.sample_rate, *whole, begin=self._part[0]),
                lambda: self._audio.blocks() if step.source is None else self._song(step.source),
                self._reporter(index),
            )
            for index, separator in enumerate(step.separators, before)
        ]

    def _reporter(self, number: int) -> bool | Progress:
        report = self._report
        return False if report is None else lambda done, total, /: report(number, done, total)


def _cut(blocks: Iterable[Tensor], skip: int, left: float) -> Generator[Tensor]:
    """Leave out samples at the beginning, and end after so many more."""
    for block in blocks:
        wanted = block[..., skip : skip + int(min(left, block.shape[-1]))]
        skip = max(0, skip - block.shape[-1])
        left -= wanted.shape[-1]
        if wanted.shape[-1]:
            yield wanted
        if left <= 0:
            return


def _within_silence(blocks: Iterator[Tensor], first: int, last: float, song: Iterable[Tensor]) -> Generator[Tensor]:
    """Put samples `first` to before `last`, `(s, t)`, where they are in a song that is silent elsewhere."""
    position = 0
    held: Tensor | None = None
    for around in song:
        silent = torch.zeros_like(around)
        begin, end = (int(max(0, min(each - position, around.shape[-1]))) for each in (first, last))
        while begin < end:
            held = next(blocks) if held is None else held
            count = min(end - begin, held.shape[-1])
            silent[:, begin : begin + count] = held[:, :count]
            held = held[:, count:] if count < held.shape[-1] else None
            begin += count
        position += around.shape[-1]
        yield silent
