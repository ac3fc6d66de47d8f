"""Value residual learning, one number at a time."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from hunterFormsBS.operations.valueResidual import mix_values, mixes_of_axes


@pytest.mark.parametrize("how", ["learned", "constant"])
def test_mix_is_the_weighted_mean_of_own_and_first_values(how: Any) -> None:
    v, first, logits = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.randn(2, 4, 3)
    out = mix_values(v, first, logits, how)
    for b, h, n in product(range(2), range(3), range(4)):
        mix = 1 / (1 + math.exp(-logits[b, n, h]))
        torch.testing.assert_close(out[b, h, n], (1 - mix) * v[b, h, n] + mix * first[b, h, n])
    torch.testing.assert_close(mix_values(v, first, None, how), (v + first) / 2)


def logits_of(mix: float) -> Tensor:
    return torch.full((1, 1, 1), math.log(mix / (1 - mix)))


def test_swapped_mix_takes_the_first_values_for_the_weight() -> None:
    v, first = torch.tensor([2.0, -1.0]).view(1, 1, 1, 2), torch.tensor([0.5, 3.0]).view(1, 1, 1, 2)
    # 2 + 0.5 · (0.25 - 2), and -1 + 3 · (0.25 + 1)
    expected = torch.tensor([1.125, 2.75]).view(1, 1, 1, 2)
    torch.testing.assert_close(mix_values(v, first, logits_of(0.25), "swapped"), expected)


def test_swapped_mix_is_lerp_with_its_last_arguments_exchanged() -> None:
    v, first = torch.randn(1, 1, 1, 5), torch.randn(1, 1, 1, 5)
    expected: Tensor = torch.lerp(v, torch.full_like(v, 0.7), first)
    torch.testing.assert_close(mix_values(v, first, logits_of(0.7), "swapped"), expected)


def test_values_that_are_not_to_be_mixed_stay_as_they_are() -> None:
    v = torch.randn(1, 2, 3, 4)
    assert mix_values(v, torch.randn(1, 2, 3, 4), None, None) is v


def test_mixing_without_first_values_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="pass `first_values`"):
        mix_values(torch.randn(1, 2, 3, 4), None, None, "constant")


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
