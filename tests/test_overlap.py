"""Runs of bins: as few as can be, and sums as of `index_add`, gradients included."""

from __future__ import annotations

import pytest
import torch

from hunterFormsBS.kernels.overlap import Run, add_runs, runs_of


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
    assert list(runs_of(torch.tensor(freqs))) == expected


def test_sum_and_gradient_are_those_of_index_add() -> None:
    freqs = torch.tensor([1, 2, 3, 2, 3, 6, 3])
    values = torch.randn(2, 3, 4, len(freqs), 2, 2, dtype=torch.float64, requires_grad=True)
    expected = values.new_zeros(2, 3, 4, 8, 2, 2).index_add(3, freqs, values)
    torch.testing.assert_close(add_runs(values, runs_of(freqs), 8), expected)
    assert torch.autograd.gradcheck(lambda v: add_runs(v, runs_of(freqs), 8), values)
    assert torch.autograd.gradgradcheck(lambda v: add_runs(v, runs_of(freqs), 8).square(), values)
