"""Root mean square normalisation against its formula, one number at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.operations.norm import at_least_float32, rms_norm


def naive_rms_norm(x: list[float], gamma: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in x))
    return [value / max(length, 1e-12) * math.sqrt(len(x)) * gain for value, gain in zip(x, gamma, strict=True)]


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_norm_equals_the_formula_computed_number_by_number(dim: int) -> None:
    x, norm = torch.randn(3, 4, dim) * 5, RMSNorm(dim)
    torch.nn.init.normal_(norm.gamma)
    rows = [naive_rms_norm(row, norm.gamma.tolist()) for row in x.flatten(0, 1).tolist()]
    torch.testing.assert_close(norm(x), torch.tensor(rows).view_as(x))


def test_norm_of_three_four_has_known_values() -> None:
    out = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 10.0]))
    torch.testing.assert_close(out, torch.tensor([0.6, 8.0]) * math.sqrt(2))


def test_new_norm_has_one_parameter_gamma_of_ones() -> None:
    state_dict = RMSNorm(5).state_dict()
    assert {name: tensor.tolist() for name, tensor in state_dict.items()} == {"gamma": [1.0] * 5}


def test_zero_vector_stays_zero_and_its_gradient_is_finite() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    out = RMSNorm(4)(x)
    out.sum().backward()
    assert out.eq(0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("length", "factor"), [(1e-11, 1.0), (1e-12, 1.0), (1e-13, 0.1), (1e-16, 1e-4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_shorter_than_the_floor_are_divided_by_the_floor(
    length: float, factor: float, dtype: torch.dtype
) -> None:
    x = torch.tensor([0.0, -length, 0.0, 0.0], dtype=dtype)
    expected = torch.tensor([0.0, -2.0 * factor, 0.0, 0.0], dtype=dtype)
    torch.testing.assert_close(rms_norm(x, torch.ones(4, dtype=dtype)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_normalised_in_float32_and_come_back_as_they_were(dtype: torch.dtype) -> None:
    # Squares of 300 overflow float16, and 256 squares of about 1 stop adding up in bfloat16.
    x, gamma = (torch.randn(6, 256) * 300).to(dtype), torch.randn(256).to(dtype)
    out = rms_norm(x, gamma)
    assert out.dtype == dtype
    rows = [naive_rms_norm(row, gamma.tolist()) for row in x.tolist()]
    assert torch.equal(out, torch.tensor(rows).to(dtype))


def test_half_vectors_shorter_than_half_types_can_square_are_normalised() -> None:
    x = torch.full((4,), 1e-6, dtype=torch.float16)
    torch.testing.assert_close(rms_norm(x, torch.ones(4)), torch.ones(4, dtype=torch.float16))


@pytest.mark.parametrize("swap", [False, True])
def test_output_has_the_narrower_dtype_of_input_and_gain(swap: bool) -> None:
    dtypes = (torch.float16, torch.float32) if swap else (torch.float32, torch.float16)
    x, gamma = (torch.ones(4, dtype=dtype) for dtype in dtypes)
    torch.testing.assert_close(rms_norm(x, gamma), torch.ones(4, dtype=torch.float16))


def test_wide_input_is_narrowed_after_it_was_normalised() -> None:
    out = rms_norm(torch.full((4,), 1e6), torch.ones(4, dtype=torch.float16))
    torch.testing.assert_close(out, torch.ones(4, dtype=torch.float16))


def test_autocast_changes_nothing() -> None:
    x, norm = torch.randn(2, 8), RMSNorm(8)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.float32
    assert torch.equal(out, norm(x))


def test_gradients_are_those_of_finite_differences() -> None:
    x, gamma = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in [(3, 5), (5,)])
    assert torch.autograd.gradcheck(rms_norm, (x, gamma))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_only_half_types_are_widened(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert at_least_float32(dtype) == expected


def test_scale_of_input_does_not_matter() -> None:
    x, gamma = torch.randn(5, 9), torch.randn(9)
    expected: Tensor = rms_norm(x, gamma)
    torch.testing.assert_close(rms_norm(x * 1e-6, gamma), expected)
    torch.testing.assert_close(rms_norm(x * 1e6, gamma), expected)
