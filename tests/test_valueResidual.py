"""Value residual learning, one number at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hunterFormsBS.blocks.valueResidual import mix_values, mixes_of_axes


@pytest.mark.parametrize("how", ["learned", "constant"])
def test_mix_is_the_weighted_mean_of_own_and_first_values(how: Any) -> None:
    v, first, mix = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4, 1)
    expected = (1 - mix) * v + mix * first
    torch.testing.assert_close(mix_values(v, first, mix, how), expected)
    torch.testing.assert_close(mix_values(v, first, 0.5, how), (v + first) / 2)


def test_swapped_mix_takes_the_first_values_for_the_weight() -> None:
    v, first, mix = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0]), torch.tensor([0.25])
    # 2 + 0.5 · (0.25 - 2), and -1 + 3 · (0.25 + 1)
    torch.testing.assert_close(mix_values(v, first, mix, "swapped"), torch.tensor([1.125, 2.75]))


def test_swapped_mix_is_lerp_with_its_last_arguments_exchanged() -> None:
    v, first, mix = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4, 1)
    expected: Tensor = torch.lerp(v, mix.expand_as(v), first)
    torch.testing.assert_close(mix_values(v, first, mix, "swapped"), expected)


@pytest.mark.parametrize(
    ("learned", "softmax", "linear"),
    [
        (None, "learned", "learned"),
        (True, "learned", "learned"),
        (False, "constant", "constant"),
        ("swapped", "swapped", "learned"),
        ("swapped_everywhere", "swapped", "swapped"),
    ],
)
def test_choice_for_the_model_decides_for_each_axis(learned: Any, softmax: str, linear: str) -> None:
    assert mixes_of_axes(True, learned) == {"linear": linear, "time": softmax, "frequency": softmax}


def test_without_value_residual_learning_no_axis_mixes() -> None:
    assert mixes_of_axes(False, None) == {"linear": None, "time": None, "frequency": None}
