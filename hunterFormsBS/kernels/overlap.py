"""Where bands overlap: adding what they say of the same frequency bin.

On a CPU PyTorch's `index_add` goes from bin to bin; here whole runs of bins are added, in an eighth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


class Run(NamedTuple):
    """Bins that follow one another both where bands line up one after another and in the spectrum."""

    places: slice
    freqs: slice


def runs_of(freq_indices: Tensor) -> tuple[Run, ...]:
    """Divide bins, listed band after band, `(bins of all bands)`, into the fewest runs."""
    breaks = (freq_indices.diff() != 1).nonzero().flatten() + 1
    runs: list[Run] = []
    for start, stop in pairwise([0, *map(int, breaks), len(freq_indices)]):
        first = int(freq_indices[start])
        runs.append(Run(slice(start, stop), slice(first, first + stop - start)))
    return tuple(runs)


def add_runs(values: Tensor, runs: Sequence[Run], num_freqs: int) -> Tensor:
    """Return the sum, for every bin, of the values that bands have for it.

    Parameters
    ----------
    values : Tensor
        `(b, n, t, bins of all bands, s, c)`.
    runs : sequence of Run
        Where they belong.
    num_freqs : int
        Frequency bins.

    Returns
    -------
    Tensor
        `(b, n, t, num_freqs, s, c)`; zero where no band is.
    """
    return cast(Tensor, _AddRuns.apply(values, runs, num_freqs))  # type: ignore[no-untyped-call]


class _AddRuns(torch.autograd.Function):
    """Differentiable `add_runs`; autograd by itself would copy all bins for every run."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, runs: Sequence[Run], num_freqs: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.runs = runs
        total = values.new_zeros((*values.shape[:3], num_freqs, *values.shape[4:]))
        for run in runs:
            total[:, :, :, run.freqs] += values[:, :, :, run.places]
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.cat([grad[:, :, :, run.freqs] for run in ctx.runs], dim=3), None, None
