"""Numbers stay what the formulas say, whatever users change inside a model: weights, methods, memory."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.attend import Transformer
from hunterFormsBS.bandSplit import MaskEstimator, masks_of_stems
from hunterFormsBS.blocks.positions import PolarEmbedding, PositionEmbedding, RotaryEmbedding, complex_product
from hunterFormsBS.blocks.spectrum import SpectralTransform
from hunterFormsBS.kernels.linear import linear
from hunterFormsBS.kernels.seam import reference, surroundings
from hunterFormsBS.theTypes import ParametersAttention, ParametersSTFT, ParametersTransformer

Build = Callable[..., BandSplitRotator]
WIDTHS = (4, 6, 6, 10)
ATTENTION = ParametersTransformer(ParametersAttention(heads=2, dim_head=4))


# Positions


@pytest.mark.parametrize("make", [lambda: RotaryEmbedding(8), lambda: PolarEmbedding(8, 2)], ids=["RoPE", "PoPE"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_are_exact_whatever_casts_frequencies(
    make: Callable[[], PositionEmbedding], dtype: torch.dtype
) -> None:
    cast, exact = make(), make()
    for tensor in (*cast.parameters(), *cast.buffers()):
        tensor.data = tensor.data.to(dtype)
    for actual, expected in zip(cast.table(700), exact.table(700), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_frequencies_that_are_not_those_of_the_formula_stay_what_they_are() -> None:
    own = RotaryEmbedding(8)
    own.freqs.data = (own.freqs.data * 1.5).bfloat16()
    positions = torch.arange(5.0)[:, None] * own.freqs.float()
    torch.testing.assert_close(own.table(5)[0], torch.stack((positions.cos(), positions.sin()), -1))


@pytest.mark.parametrize("use_pope", [False, True], ids=["RoPE", "PoPE"])
def test_a_model_whose_parameters_are_cast_for_each_call_is_the_cast_model(use_pope: bool, tiny_model: Build) -> None:
    model, audio = tiny_model(use_pope=use_pope).eval(), torch.randn(1, 1, 2000)
    parameters = {name: parameter.detach().bfloat16() for name, parameter in model.named_parameters()}
    with torch.no_grad(), reference():
        expected = copy.deepcopy(model).bfloat16()(audio)
        actual = torch.func.functional_call(model, parameters, (audio,))
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


# What kernels rely on


def heads(change: Callable[[list[MaskEstimator]], object]) -> list[MaskEstimator]:
    torch.manual_seed(1)
    estimators = [MaskEstimator(6, WIDTHS, mask_estimator_depth=1) for _ in range(2)]
    change(estimators)
    return estimators


def narrower(estimators: list[MaskEstimator]) -> None:
    for net in estimators[1].to_freqs:
        net[0][0], net[0][2] = nn.Linear(6, 5), nn.Linear(5, net[0][2].out_features)


def without_biases(estimators: list[MaskEstimator]) -> None:
    for net in estimators[1].to_freqs:
        net[0][0].bias = None


CHANGES: dict[str, Callable[[list[MaskEstimator]], object]] = {
    "deeper": lambda each: each.__setitem__(1, MaskEstimator(6, WIDTHS, mask_estimator_depth=2)),
    "wider": lambda each: each.__setitem__(1, MaskEstimator(6, WIDTHS, mlp_expansion_factor=3)),
    "narrower": narrower,
    "without biases": without_biases,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("where", ["CPU", "device"])
def test_stems_may_have_heads_that_differ(change: Any, where: str, as_on_a_gpu: Any) -> None:
    estimators, x = heads(change), torch.randn(2, 5, len(WIDTHS), 6)
    with torch.no_grad():
        with reference():
            expected = masks_of_stems(estimators, x)
        if where == "CPU":
            actual = masks_of_stems(estimators, x)
        else:
            with as_on_a_gpu():
                actual = masks_of_stems(estimators, x)
    torch.testing.assert_close(actual, expected)


class WithWholeBatch(Transformer):
    """Its layers see the mean over the batch, which they would not see of blocks."""

    def run_layers(self, x: Tensor, first_values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        out, values = super().run_layers(x, first_values)
        return out + x.mean(0), values


class Backwards(RotaryEmbedding):
    """Turns the other way."""

    def embed(self, q: Tensor, k: Tensor, table: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return super().embed(q, k, (table[0] * torch.tensor([1.0, -1.0]),))


def a_patched_embedding(monkeypatch: pytest.MonkeyPatch) -> Transformer:
    layer = Transformer(6, ATTENTION, depth=1, positions=RotaryEmbedding(4))
    monkeypatch.setattr(layer.positions, "embed", lambda q, k, _table: (q + 1, k))
    return layer


OVERRIDDEN: dict[str, Callable[[pytest.MonkeyPatch], Transformer]] = {
    "run_layers": lambda _: WithWholeBatch(6, ATTENTION, depth=1, positions=RotaryEmbedding(4)),
    "embed": lambda _: Transformer(6, ATTENTION, depth=1, positions=Backwards(4)),
    "embed of one": a_patched_embedding,
}


@pytest.mark.parametrize("make", OVERRIDDEN.values(), ids=OVERRIDDEN)
def test_methods_that_users_override_or_replace_are_called(
    make: Callable[[pytest.MonkeyPatch], Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hunterFormsBS.kernels.transformer.TOKENS_PER_BLOCK", 10)
    layer, x = make(monkeypatch), torch.randn(6, 5, 6)
    with torch.no_grad():
        actual = layer(x)[0]
        with reference():
            torch.testing.assert_close(actual, layer(x)[0])
    plain = Transformer(6, ATTENTION, depth=1, positions=RotaryEmbedding(4))
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(plain(x)[0], actual)


@pytest.mark.parametrize("rows", [1, 40])
def test_a_bias_without_memory_of_its_own_is_read_as_it_is(rows: int) -> None:
    x, weight, bias = torch.randn(rows, 8), torch.randn(16, 8), torch.full((1,), 0.5).expand(16)
    torch.testing.assert_close(linear(x, weight, bias), x @ weight.T + 0.5)


def shifted(x: Tensor) -> Tensor:
    """Return the same numbers at an odd offset."""
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "parts apart": lambda x: torch.stack(x.unbind(-1)).movedim(0, -1),
    "odd offset": shifted,
    "odd stride": lambda x: torch.cat((x, x[..., :1]), -1)[..., :2],
    "transposed": lambda x: x.mT.contiguous().mT,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_spectra_may_lie_in_memory_as_they_like(layout: Callable[[Tensor], Tensor], tiny_model: Build) -> None:
    model, transform = tiny_model().eval(), SpectralTransform(ParametersSTFT(64, 16, 64))
    x, y = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    torch.testing.assert_close(complex_product(layout(x), layout(y)), complex_product(x, y))
    spectrum = transform.forward(torch.randn(1, 1, 500))
    torch.testing.assert_close(transform.inverse(layout(spectrum)), transform.inverse(spectrum))
    with torch.no_grad():
        torch.testing.assert_close(model.mask_spectrum(layout(spectrum)), model.mask_spectrum(spectrum))


# The switch


def test_reference_in_threads_that_overlap_holds_for_each_alone_and_for_as_long_as_it_lasts() -> None:
    inside, outside, seen = threading.Event(), threading.Event(), {}

    def with_reference() -> None:
        with reference():
            inside.set()
            outside.wait(10)
            with reference():
                pass
            seen["with"] = surroundings().off
        seen["after"] = surroundings().off

    thread = threading.Thread(target=with_reference)
    thread.start()
    inside.wait(10)
    seen["without"] = surroundings().off
    with reference():
        pass
    outside.set()
    thread.join()
    assert seen == {"with": True, "after": False, "without": False}
    assert not surroundings().off


# Graphs


def with_other_activations(model: BandSplitRotator) -> None:
    for estimator in model.mask_estimators:
        for net in estimator.to_freqs:  # type: ignore[union-attr]
            net[0][1] = nn.ReLU()


def with_patched_gates(model: BandSplitRotator) -> None:
    for net in model.mask_estimators[0].to_freqs:  # type: ignore[union-attr]
        net[1].forward = lambda x: x[..., : x.shape[-1] // 2]


def with_patched_norms(model: BandSplitRotator) -> None:
    model.band_split.to_features[0][0].forward = lambda x: x  # type: ignore[index]


@pytest.mark.compile
@pytest.mark.parametrize("change", [with_other_activations, with_patched_gates, with_patched_norms])
def test_a_graph_is_made_again_when_a_layer_inside_or_its_forward_is_replaced(
    change: Callable[[BandSplitRotator], None], tiny_model: Build
) -> None:
    model, spectrum = tiny_model(num_stems=2).eval(), torch.randn(1, 1, 33, 5, 2)
    torch.compiler.reset()
    compiled = torch.compile(model.mask_spectrum, backend="eager", fullgraph=True)
    with torch.no_grad():
        before = compiled(spectrum)
        change(model)
        after = compiled(spectrum)
        torch.testing.assert_close(after, model.mask_spectrum(spectrum))
    assert not torch.allclose(before, after)
