"""The graph of steps that a song goes through: which models, what each of them separates, and what is given back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from hunterFormsBS.ensemble import HOP, Ensemble, uses_spectra
from hunterFormsBS.songs.parts import reach
from hunterFormsBS.songs.settings import Settings

__all__ = ["ALL", "REST", "Combination", "Deferred", "Graph", "Rest", "Separator", "Signal", "Step"]

Model: TypeAlias = Callable[[Tensor], Tensor]

ALL: Literal["all"] = "all"
"""All stems of a step."""


class Rest(NamedTuple):
    """The input of a step minus the stems of these numbers; None: minus all of its stems."""

    without: tuple[int, ...] | None = None


REST = Rest()
"""The input of a step minus all of its stems."""


class Deferred(NamedTuple):
    """A model that is loaded when its turn comes, and forgotten after it."""

    load: Callable[[], Model]


class Separator(NamedTuple):
    """A model, and how songs are separated with it."""

    model: Model | Deferred
    """From `(b, s, t)` to `(b, n, s, t)`."""
    settings: Settings
    order: Sequence[int] | None = None
    """Which of its stems, in which order. None: all."""


class Combination(NamedTuple):
    """How the stems of several models become one; see `hunterFormsBS.ensemble.combine`."""

    kind: Ensemble = "avg_wave"
    weights: Sequence[float] | None = None


class Signal(NamedTuple):
    """One output of a step: the stem of this number, `ALL` of them, or a `Rest`."""

    step: int
    stem: int | Literal["all"] | Rest


class Step(NamedTuple):
    """One model, or several with the same stems, which are combined."""

    separators: Sequence[Separator]
    combination: Combination = Combination()
    source: Signal | None = None
    """The signal of an earlier step that is separated. None: the mixture."""

    @property
    def normalizes(self) -> bool:
        """Whether all of the input must be known before its first sample is separated."""
        return any(separator.settings.normalize for separator in self.separators)

    def whole(self, first: int, last: float) -> tuple[int, float]:
        """Return a part that begins and ends with frames of the ensemble's spectra, one more at either end."""
        if len(self.separators) == 1 or not uses_spectra(self.combination.kind):
            return first, last
        return max(0, first // HOP - 1) * HOP, last if last == math.inf else (math.ceil(last / HOP) + 1) * HOP

    def reach(self, first: int, last: float, sample_rate: int) -> tuple[int, float]:
        """Return which part of the input decides samples `first` to before `last` of the stems."""
        reaches = [
            (0, math.inf)
            if settings.normalize or settings.parameters.shifts > 1
            else reach(*self.whole(first, last), sample_rate, settings.sample_rate, settings.parameters.chunk_size)
            for _, settings, _ in self.separators
        ]
        return min(first for first, _ in reaches), max(last for _, last in reaches)


class Graph(NamedTuple):
    """Steps, and which of their signals are given back."""

    steps: Sequence[Step]
    """Each after the one that its input comes from, and each needed for an output."""
    outputs: Sequence[Signal] = (Signal(0, ALL),)
    one_model_at_a_time: bool = False
    """Keep the stems of each model in a temporary file before the next model begins."""

    @property
    def models(self) -> int:
        """How many models there are in all steps."""
        return sum(len(step.separators) for step in self.steps)

    @classmethod
    def of(
        cls,
        separators: Sequence[Separator],
        combination: Combination = Combination(),  # noqa: B008  # it cannot change
    ) -> Graph:
        """Return the graph of one step, which gives back all stems."""
        return cls([Step(separators, combination)])

    def with_rests(self, rests: Sequence[Rest]) -> Graph:
        """Return the graph that gives back rests of its first step, too, which the mixture goes through."""
        return self._replace(outputs=[*self.outputs, *(Signal(0, rest) for rest in rests)])
