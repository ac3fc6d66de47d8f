"""Gathering and averaging bins in whole runs.

A run is a range of bins that are consecutive both in the spectrum and in the list of all bands' bins. Bands side by
side are a single run, which needs neither gather nor scatter. If bands overlap, PyTorch copies bin by bin on a CPU;
copying run by run takes an eighth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from more_itertools import consecutive_groups
from torch import Tensor

from hunterFormsBS.kernels.constants import Constants
from hunterFormsBS.kernels.seam import Where, kernel


class Run(NamedTuple):
    """Offsets of a run in the list of all bands' bins and in the spectrum, and its length."""

    offsets: slice
    freqs: slice


class Bins(Protocol):
    """The part of a layout's bins that kernels use."""

    num_freqs: int
    runs: tuple[Run, ...]
    constants: Constants


def runs_of(freq_indices: Sequence[int]) -> tuple[Run, ...]:
    """Divide bins, listed band after band, into the fewest runs."""
    runs: list[Run] = []
    start = 0
    for group in map(list, consecutive_groups(freq_indices)):
        runs.append(Run(slice(start, start + len(group)), slice(group[0], group[0] + len(group))))
        start += len(group)
    return tuple(runs)


@kernel(Where.EVERYWHERE, ordinary=True)
def gather_slice(bins: Bins, frames: Tensor) -> Tensor | None:
    """Gather a single run, as a view."""
    run, *others = bins.runs
    return None if others else frames[:, :, run.freqs]


@kernel(Where.CPU, ordinary=True)
def gather_runs(bins: Bins, frames: Tensor) -> Tensor | None:
    """Gather several runs."""
    return torch.cat([frames[:, :, run.freqs] for run in bins.runs], dim=2)


@kernel(Where.EVERYWHERE, ordinary=True)
def average_slice(bins: Bins, masks: Tensor) -> Tensor | None:
    """Average a single run: nothing overlaps; only bins outside all bands are added."""
    run, *others = bins.runs
    if others:
        return None
    outside = (run.freqs.start, bins.num_freqs - run.freqs.stop)
    return F.pad(masks, (0, 0, 0, 0, *outside)) if any(outside) else masks


@kernel(Where.CPU)
def average_runs(bins: Bins, masks: Tensor) -> Tensor | None:
    """Add several runs, and divide by the number of bands at each bin."""
    counts = bins.constants.on(masks.device, "num_bands_per_freq").clamp_min(1)[:, None, None]
    return cast(Tensor, _AddRuns.apply(masks, bins.runs, bins.num_freqs)).div_(counts)  # type: ignore[no-untyped-call]


class _AddRuns(torch.autograd.Function):
    """Sum of the bands' values at every bin; autograd would copy all bins for every run."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, runs: Sequence[Run], num_freqs: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.runs = runs
        total = values.new_zeros((*values.shape[:3], num_freqs, *values.shape[4:]))
        for run in runs:
            total[:, :, :, run.freqs] += values[:, :, :, run.offsets]
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.cat([grad[:, :, :, run.freqs] for run in ctx.runs], dim=3), None, None
