"""Transformers against the layers that they are made of, and against themselves run another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hunterFormsBS.attend import Transformer
from hunterFormsBS.blocks.positions import PolarEmbedding, RotaryEmbedding
from hunterFormsBS.kernels import transformer as transformer_kernel
from hunterFormsBS.kernels.seam import Layer, know
from hunterFormsBS.theTypes import ParametersAttention, ParametersResidual, ParametersTransformer

DIM, HEADS, DIM_HEAD = 6, 2, 4

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "polar": {"polar": True},
    "linear": {"linear_attn": True},
    "streams": {"num_residual_streams": 3},
    "fracs": {"num_residual_streams": 2, "num_residual_fracs": 2, "mc_hyper_conn_sinkhorn_iters": 2},
}


@pytest.fixture
def make_transformer(randomise: Callable[[nn.Module], None]) -> Callable[..., Transformer]:
    def make(*, polar: bool = False, depth: int = 2, **overrides: Any) -> Transformer:
        def packed(kind: Any, defaults: dict[str, Any]) -> Any:
            return kind(**defaults | {name: overrides.pop(name) for name in kind._fields if name in overrides})

        attention = packed(ParametersAttention, {"heads": HEADS, "dim_head": DIM_HEAD})
        residual = packed(ParametersResidual, {})
        parameters = packed(ParametersTransformer, {"attention": attention, "residual": residual})
        positions = PolarEmbedding(DIM_HEAD, HEADS) if polar else RotaryEmbedding(DIM_HEAD)
        if overrides.get("linear_attn"):
            positions = None
        transformer = Transformer(DIM, parameters, depth=depth, positions=positions, **overrides)
        randomise(transformer)
        return transformer

    return make


@pytest.mark.parametrize("norm_output", [True, False])
@pytest.mark.parametrize("linear_attn", [True, False])
def test_transformer_adds_attention_then_feedforward_in_each_layer(
    norm_output: bool, linear_attn: bool, make_transformer: Callable[..., Transformer]
) -> None:
    transformer = make_transformer(norm_output=norm_output, linear_attn=linear_attn, keep_values=True)
    x = torch.randn(3, 5, DIM)
    expected, first = x, None
    for attention, feedforward in transformer.layers:  # type: ignore[misc]
        out, values = attention(expected)
        first = values if first is None else first
        expected = expected + out
        expected = expected + feedforward(expected)
    if norm_output:
        gamma = transformer.norm.gamma
        expected = expected / expected.norm(dim=-1, keepdim=True) * DIM**0.5 * gamma  # type: ignore[operator]
    actual, values = transformer(x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(values, first)


def make_known(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels serve a class of which a test has replaced a method."""
    monkeypatch.setattr(Layer, "methods", dict(Layer.methods))
    know(kind)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [1, 7, 17, 10**6])
def test_blocks_of_any_size_give_the_same_outputs_and_gradients(
    variant: str, tokens: int, make_transformer: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_transformer(keep_values=True, **VARIANTS[variant]).double()
    second = make_transformer(value_residual_mix="learned", **VARIANTS[variant]).double()
    x, results = torch.randn(6, 5, DIM, dtype=torch.float64, requires_grad=True), []
    for tokens_per_block in (10**6, tokens):
        monkeypatch.setattr(transformer_kernel, "TOKENS_PER_BLOCK", tokens_per_block)
        middle, values = first(x)
        out, nothing = second(middle, values)
        assert nothing is None
        leaves = [x, *(p for p in (*first.parameters(), *second.parameters()) if p.requires_grad)]
        results.append((out, values, *torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 14, 28, 100])
def test_a_block_holds_whole_items_and_no_more_tokens_than_asked_for(
    tokens: int, make_transformer: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer, x = make_transformer(num_residual_streams=2), torch.randn(12, 7, DIM)
    monkeypatch.setattr(transformer_kernel, "TOKENS_PER_BLOCK", tokens)
    run_layers, sizes = Transformer.run_layers, []

    def noted(self: Transformer, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(x))
        return run_layers(self, x, *args, **kwargs)

    monkeypatch.setattr(Transformer, "run_layers", noted)
    make_known(Transformer, monkeypatch)
    transformer(x)
    assert sum(sizes) == 12
    assert all(size % 2 == 0 for size in sizes)
    assert all(size * 7 <= tokens or size == 2 for size in sizes)
    assert len(sizes) == {1: 6, 14: 6, 28: 3, 100: 1}[tokens]


@pytest.mark.parametrize("variant", VARIANTS)
def test_transposed_view_gives_what_its_copy_gives(variant: str, make_transformer: Callable[..., Transformer]) -> None:
    transformer, x = make_transformer(**VARIANTS[variant]), torch.randn(5, 6, DIM)
    before = x.clone()
    view = x.transpose(0, 1)
    assert not view.is_contiguous()
    actual, _ = transformer(view)
    torch.testing.assert_close(actual, transformer(view.contiguous())[0])
    assert torch.equal(x, before), "the input belongs to the caller"


@pytest.mark.parametrize("variant", VARIANTS)
def test_activation_checkpointing_changes_neither_outputs_nor_gradients(
    variant: str, make_transformer: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer_kernel, "TOKENS_PER_BLOCK", 12)
    transformer = make_transformer(value_residual_mix="learned", attn_dropout=0.3, ff_dropout=0.3, **VARIANTS[variant])
    x, results = torch.randn(6, 5, DIM, requires_grad=True), []
    source = make_transformer(keep_values=True, **VARIANTS[variant])
    values = source(x)[1].detach()
    for use_torch_checkpoint in (False, True):
        transformer.use_torch_checkpoint = use_torch_checkpoint
        torch.manual_seed(5)
        out, _ = transformer(x, values)
        leaves = [x, *(p for p in transformer.parameters() if p.requires_grad)]
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert all(map(torch.equal, *results))


def test_activation_checkpointing_stores_less(make_transformer: Callable[..., Transformer]) -> None:
    stored: list[int] = []
    x = torch.randn(6, 5, DIM, requires_grad=True)
    for use_torch_checkpoint in (False, True):
        saved: list[int] = []
        transformer = make_transformer(use_torch_checkpoint=use_torch_checkpoint)

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            transformer(x)
        stored.append(sum(saved))
    assert stored[1] < 0.1 * stored[0]


def test_position_table_is_computed_once_a_call(
    make_transformer: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    original = RotaryEmbedding.table

    def table(self: RotaryEmbedding, length: int) -> tuple[Tensor, ...]:
        lengths.append(length)
        return original(self, length)

    monkeypatch.setattr(RotaryEmbedding, "table", table)
    make_known(RotaryEmbedding, monkeypatch)
    monkeypatch.setattr(transformer_kernel, "TOKENS_PER_BLOCK", 10)
    make_transformer(depth=3)(torch.randn(6, 5, DIM))
    make_transformer(depth=3, num_residual_streams=2)(torch.randn(6, 4, DIM))
    assert lengths == [5, 4]


class Wrapped(nn.Module):
    """An attention layer inside something that knows nothing of tables."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.inside = attention

    def forward(self, x: Tensor, first_values: Tensor | None = None) -> Any:
        return self.inside(x, first_values=first_values)


def test_attention_layers_may_be_wrapped(make_transformer: Callable[..., Transformer]) -> None:
    transformer, x = make_transformer(), torch.randn(3, 5, DIM)
    expected = transformer(x)
    for layer in transformer.layers:
        layer[0] = Wrapped(layer[0])  # type: ignore[index, operator]
    torch.testing.assert_close(transformer(x), expected)


def test_new_frequencies_take_effect_at_once(make_transformer: Callable[..., Transformer]) -> None:
    transformer, x = make_transformer(), torch.randn(3, 5, DIM)
    before = transformer(x)[0]
    state_dict = transformer.state_dict()
    state_dict = {name: 2 * t if name.endswith("freqs") else t for name, t in state_dict.items()}
    transformer.load_state_dict(state_dict)
    after = transformer(x)[0]
    assert (after - before).abs().max() > 1e-3
    for layer in transformer.layers:
        layer[0].rotary_embed.freqs.data /= 2  # type: ignore[index, union-attr]
        break  # one embedding serves all layers
    torch.testing.assert_close(transformer(x)[0], before)


def test_transformer_hands_every_setting_to_its_layers() -> None:
    transformer = Transformer(
        DIM,
        ParametersTransformer(
            attention=ParametersAttention(
                heads=3, dim_head=2, attn_dropout=0.1, flash_attn=False, sage_attention=True, scale=0.9
            ),
            ff_mult=5,
            ff_dropout=0.2,
        ),
        depth=3,
        value_residual_mix="constant",
        positions=(rotary := RotaryEmbedding(2)),
    )
    assert transformer.positions is rotary
    assert len(transformer.layers) == 3
    for attention, feedforward in transformer.layers:  # type: ignore[misc]
        attend = attention.attend
        assert (attend.flash_attn, attend.sage_attention, attend.scale, attend.attn_dropout.p) == (
            False,
            True,
            0.9,
            0.1,
        )
        assert attention.to_qkv.weight.shape == (18, DIM)
        assert attention.to_out[1].p == 0.1
        assert attention.value_residual_mix == "constant"
        assert attention.to_value_residual_mix is None
        assert attention.positions is rotary
        assert feedforward.net[1].weight.shape == (5 * DIM, DIM)
        assert feedforward.net[3].p == feedforward.net[5].p == 0.2


def test_wrapped_sublayers_start_on_streams_in_turn() -> None:
    parameters = ParametersTransformer(
        ParametersAttention(heads=1, dim_head=2),
        ParametersResidual(num_residual_streams=3, mc_hyper_conn_sinkhorn_iters=4),
    )
    transformer = Transformer(DIM, parameters, depth=2)
    sublayers = [sublayer for layer in transformer.layers for sublayer in layer]  # type: ignore[union-attr]
    chosen = [int(sublayer.static_alpha[:, 0].argmax()) for sublayer in sublayers]  # type: ignore[index, union-attr]
    assert chosen == [0, 1, 2, 0]
