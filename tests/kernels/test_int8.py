"""Linear maps in int8 against exact sums and against the error that rounding may make; models against float32."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.kernels import internals
from hunterFormsBS.kernels.int8 import STEPS, WeightInt8, in_int8, product, quantised
from hunterFormsBS.kernels.linear import ACTIVATIONS, Activation, linear, pack
from hunterFormsBS.kernels.seam import reference

Build = Callable[..., BandSplitRotator]

OPERATORS = internals.int8_products()
pytestmark = pytest.mark.skipif(OPERATORS is None, reason="this build of PyTorch has no products of int8")
GREATEST = 64 if OPERATORS is None else OPERATORS.greatest_weight


@torch.no_grad()
def packed(weight: Tensor) -> WeightInt8:
    with in_int8():
        made = quantised(weight, 8)
    assert made is not None
    return made


def signal_to_noise(actual: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (actual - expected).square().sum()))


# Products


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 32), (7, 100), (2, 3, 5, 384)])
def test_whole_numbers_that_8_bits_hold_are_multiplied_exactly(
    shape: tuple[int, ...], biased: bool, activation: Activation
) -> None:
    x = torch.randint(-100, STEPS - 99, shape).float()
    x.view(-1)[:2] = torch.tensor([-100.0, STEPS - 100])  # so that a step is 1
    weight = torch.randint(-GREATEST, GREATEST + 1, (48, shape[-1])).float()
    weight[:, 0] = GREATEST
    bias = torch.randn(48) if biased else None
    actual = product(x, packed(weight), bias, activation)
    assert actual is not None
    torch.testing.assert_close(actual, ACTIVATIONS[activation](F.linear(x, weight, bias)), rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_greatest_sums_do_not_overflow(sign: int) -> None:
    x, weight = torch.full((40, 512), float(STEPS)), torch.full((64, 512), float(sign * GREATEST))
    x[0, 0] = 0
    actual = product(x, packed(weight), None, "none")
    assert actual is not None
    torch.testing.assert_close(actual, x @ weight.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0, 50.0])
def test_results_are_off_by_no_more_than_rounding_makes_them(scale: float, shift: float) -> None:
    x, weight = (torch.randn(20, 64) + shift) * scale, torch.randn(33, 64) * torch.logspace(-4, 4, 33)[:, None]
    actual = product(x, packed(weight), None, "none")
    assert actual is not None
    error_x = (x.amax().clamp_min(0) - x.amin().clamp_max(0)).double() / STEPS * 0.501
    error_weight = weight.abs().amax(1).double() / GREATEST * 0.501
    bound = error_x * weight.abs().sum(1) + (x.abs().sum(1)[:, None] + 64 * error_x) * error_weight
    assert bool(((actual.double() - x.double() @ weight.double().T).abs() <= bound * (1 + 1e-5)).all())


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, 1e-38])
def test_inputs_and_weights_that_are_all_alike_are_no_special_case(value: float) -> None:
    x, weight = torch.full((3, 32), value), torch.full((32, 32), value)
    actual = product(x, packed(weight), torch.ones(32), "none")
    assert actual is not None
    torch.testing.assert_close(actual, F.linear(x, weight, torch.ones(32)))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["input", "weight"])
def test_what_is_not_finite_comes_out_as_in_float32(broken: float, where: str) -> None:
    x, layer = torch.randn(3, 32), nn.Linear(32, 40).requires_grad_(False)
    (x if where == "input" else layer.weight)[1, 2] = broken
    with torch.no_grad(), in_int8():
        made = pack([layer], x, 3)
        actual = linear(x, layer.weight, layer.bias, packed=made[layer])
    expected = layer(x)
    assert torch.equal(actual.isfinite(), expected.isfinite())
    assert not actual.isfinite().all()


# Which layers


@pytest.mark.parametrize(("features", "served"), [((64, 64), True), ((64, 8), False), ((8, 64), False)])
def test_small_maps_stay_in_float32(features: tuple[int, int], served: bool) -> None:
    layer = nn.Linear(*features)
    with torch.no_grad(), in_int8() as use:
        made = pack([layer], torch.randn(3, features[0]), 3)
    assert (use.weights == 1) == isinstance(made[layer], WeightInt8) == served


def test_nothing_is_quantised_that_nobody_asked_for() -> None:
    layer, x = nn.Linear(64, 64), torch.randn(3, 64)
    with torch.no_grad(), in_int8():
        pass
    with torch.no_grad():
        assert not isinstance(pack([layer], x, 3)[layer], WeightInt8)


@pytest.mark.parametrize(
    "operators",
    [
        SimpleNamespace(),
        SimpleNamespace(qlinear_pointwise=lambda *_: torch.zeros(32, 48), qlinear_prepack=lambda weight, _: weight),
        SimpleNamespace(qlinear_pointwise=lambda x: x, qlinear_prepack=lambda weight, _: weight),
    ],
    ids=["missing", "other results", "other arguments"],
)
def test_a_pytorch_without_the_operators_computes_in_float32(
    operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, model: BandSplitRotator
) -> None:
    audio = torch.randn(1, 1, 400)
    internals.int8_products.cache_clear()
    with monkeypatch.context() as patch, torch.no_grad(), in_int8() as use:
        patch.setattr(torch.ops, "onednn", operators)
        actual = model(audio)
    internals.int8_products.cache_clear()
    assert not use.weights
    with torch.no_grad():
        assert torch.equal(actual, model(audio))


# Models


@pytest.fixture
def model(tiny_model: Build) -> BandSplitRotator:
    """Return a model of layers wide enough for int8."""
    return tiny_model(dim=48, dim_head=16).eval()


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "polar": {"use_pope": True},
    "streams": {"num_residual_streams": 2},
    "value residual": {"use_value_residual_learning": True},
    "linear": {"linear_transformer_depth": 1},
    "no fused attention": {"flash_attn": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_models_of_every_kind_stay_near_float32(options: dict[str, Any], tiny_model: Build) -> None:
    model, audio = tiny_model(dim=48, dim_head=16, **options).eval(), torch.randn(2, 1, 400)
    with torch.no_grad():
        expected = model(audio)
        with in_int8() as use:
            actual = model(audio)
    assert use.weights
    assert 25 < signal_to_noise(actual, expected) < 80


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_quiet_and_loud_songs_are_as_near(scale: float, model: BandSplitRotator) -> None:
    audio = torch.randn(1, 1, 400)
    with torch.no_grad(), in_int8():
        torch.testing.assert_close(model(audio * scale) / scale, model(audio), rtol=0.05, atol=0.01)


def test_weights_that_change_between_calls_are_noticed(model: BandSplitRotator) -> None:
    audio = torch.randn(1, 1, 400)
    with torch.no_grad(), in_int8():
        before = model(audio)
        for parameter in model.layers.parameters():
            parameter.mul_(1.5)
        after = model(audio)
    with torch.no_grad():
        assert signal_to_noise(after, model(audio)) > 25
    assert signal_to_noise(after, before) < 20


def hook(model: BandSplitRotator) -> object:
    return [m.register_forward_hook(lambda *_: None) for m in model.layers.modules() if isinstance(m, nn.Linear)]


NOT_SERVED: dict[str, Callable[[BandSplitRotator], object]] = {
    "hooks": hook,
    "half weights": lambda model: model.bfloat16(),
    "float64": lambda model: model.double(),
}


@pytest.mark.parametrize("change", NOT_SERVED.values(), ids=NOT_SERVED)
def test_models_that_kernels_do_not_serve_run_as_without_int8(
    change: Callable[[BandSplitRotator], object], model: BandSplitRotator
) -> None:
    audio = torch.randn(1, 1, 400)
    change(model)
    with torch.no_grad():
        expected = model(audio)
        with in_int8() as use:
            assert torch.equal(model(audio), expected)
    assert not use.weights


def test_formulas_stay_formulas(model: BandSplitRotator) -> None:
    audio = torch.randn(1, 1, 400)
    with torch.no_grad(), reference():
        expected = model(audio)
        with in_int8():
            assert torch.equal(model(audio), expected)


def test_int8_does_not_train(model: BandSplitRotator) -> None:
    with in_int8(), pytest.raises(RuntimeError, match="int8 has no gradients"):
        model(torch.randn(1, 1, 400))
