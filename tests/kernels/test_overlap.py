"""Runs of bins: as few as can be, and means as of sums bin by bin, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hunterFormsBS.blocks.bins import Bins
from hunterFormsBS.kernels.overlap import Run, runs_of
from hunterFormsBS.kernels.seam import KERNELS

BANDS = ([1, 2, 3], [2, 3], [6], [3])


@pytest.fixture
def bins() -> Bins:
    bank = torch.zeros(len(BANDS), 8, dtype=torch.bool)
    for band, freqs in zip(bank, BANDS, strict=True):
        band[freqs] = True
    return Bins(bank)


@pytest.mark.parametrize(
    ("freqs", "expected"),
    [
        ([4], [Run(slice(0, 1), slice(4, 5))]),
        ([0, 1, 2, 3], [Run(slice(0, 4), slice(0, 4))]),
        ([2, 3, 3, 4], [Run(slice(0, 2), slice(2, 4)), Run(slice(2, 4), slice(3, 5))]),
        ([0, 2, 1], [Run(slice(0, 1), slice(0, 1)), Run(slice(1, 2), slice(2, 3)), Run(slice(2, 3), slice(1, 2))]),
    ],
    ids=["one bin", "one run", "overlap", "none follow"],
)
def test_runs_of(freqs: list[int], expected: list[Run]) -> None:
    assert list(runs_of(freqs)) == expected


def test_gathering_runs_is_index_select(bins: Bins) -> None:
    freqs = torch.tensor([freq for band in BANDS for freq in band])
    frames = torch.randn(2, 4, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(KERNELS["gather_runs"].run(bins, frames), frames.index_select(2, freqs))
    assert torch.autograd.gradcheck(lambda x: KERNELS["gather_runs"].run(bins, x), frames)


def test_average_and_gradient_are_those_of_index_add(bins: Bins) -> None:
    freqs = torch.tensor([freq for band in BANDS for freq in band])
    values = torch.randn(2, 3, 4, len(freqs), 2, 2, dtype=torch.float64, requires_grad=True)
    total = values.new_zeros(2, 3, 4, 8, 2, 2).index_add(3, freqs, values)
    counts = torch.tensor([1, 1, 2, 3, 1, 1, 1, 1])[:, None, None]

    def average(values: Tensor) -> Tensor:
        result: Tensor = KERNELS["average_runs"].run(bins, values)
        return result

    torch.testing.assert_close(average(values), total / counts)
    assert torch.autograd.gradcheck(average, values)
    assert torch.autograd.gradgradcheck(lambda v: average(v).square(), values)


@pytest.mark.parametrize("name", ["gather_slice", "average_slice"])
def test_several_runs_are_no_slice(name: str, bins: Bins) -> None:
    assert KERNELS[name].run(bins, torch.randn(1, 1, 8, 7, 1, 2)) is None


@pytest.mark.parametrize(("low", "high"), [(0, 8), (2, 8), (0, 5), (2, 5)])
def test_one_run_is_a_slice_and_bins_outside_get_zero(low: int, high: int) -> None:
    bank = torch.zeros(1, 8, dtype=torch.bool)
    bank[0, low:high] = True
    frames, masks = torch.randn(2, 4, 8, 2, 2), torch.randn(2, 3, 4, high - low, 2, 2)
    gathered = KERNELS["gather_slice"].run(Bins(bank), frames)
    assert torch.equal(gathered, frames[:, :, low:high])
    assert gathered.untyped_storage().data_ptr() == frames.untyped_storage().data_ptr()
    expected = torch.zeros(2, 3, 4, 8, 2, 2)
    expected[:, :, :, low:high] = masks
    assert torch.equal(KERNELS["average_slice"].run(Bins(bank), masks), expected)
