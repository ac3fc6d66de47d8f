"""Attention layers against their formulas, computed from their parameters, and with what people hang on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rotary_embedding_torch import RotaryEmbedding as ReferenceRotaryEmbedding
from torch import Tensor, nn

from hunterFormsBS.attend import Attention, LinearAttention
from hunterFormsBS.blocks.positions import PolarEmbedding, PositionEmbedding, RotaryEmbedding
from hunterFormsBS.theTypes import FlashAttentionConfig, ParametersAttention

DIM, HEADS, DIM_HEAD = 6, 2, 4
SIZES = ParametersAttention(heads=HEADS, dim_head=DIM_HEAD)


def positions_of(name: str | None) -> PositionEmbedding | None:
    return {"rotary": RotaryEmbedding(DIM_HEAD), "polar": PolarEmbedding(DIM_HEAD, HEADS), None: None}[name]


# Attention


def naive_attention(block: Attention, x: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute the block from its parameters, head by head."""
    weights = dict(block.named_parameters())
    heads, scale = block.heads, block.attend.scale
    assert scale is not None
    normed = x / x.norm(dim=-1, keepdim=True) * x.shape[-1] ** 0.5 * weights["norm.gamma"]
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (normed @ weights["to_qkv.weight"].T).chunk(3, -1)
    )
    own = v
    if first is not None:
        mix = torch.full((*x.shape[:2], heads), 0.5)
        if block.value_residual_mix != "constant":
            projected = normed @ weights["to_value_residual_mix.weight"].T + weights["to_value_residual_mix.bias"]
            mix = 1 / (1 + torch.exp(-projected))
        mix = mix.transpose(1, 2)[..., None]
        v = v + first * (mix - v) if block.value_residual_mix == "swapped" else (1 - mix) * v + mix * first
    if block.positions is not None:
        rotary = ReferenceRotaryEmbedding(dim=q.shape[-1])
        q, k = rotary.rotate_queries_or_keys(q), rotary.rotate_queries_or_keys(k)
    gates = 1 / (1 + torch.exp(-(normed @ weights["to_gates.weight"].T + weights["to_gates.bias"])))
    scores = torch.einsum("bhie,bhje->bhij", q, k).mul(scale).exp()
    out = torch.einsum("bhij,bhje->bhie", scores / scores.sum(-1, keepdim=True), v) * gates.transpose(1, 2)[..., None]
    merged = torch.cat([out[:, head] for head in range(heads)], dim=-1)
    return merged @ weights["to_out.0.weight"].T, own


@pytest.fixture
def make_attention(randomise: Callable[[nn.Module], None]) -> Callable[..., Attention]:
    def make(*, positions: str | None = "rotary", value_residual_mix: Any = None, **overrides: Any) -> Attention:
        block = Attention(
            DIM,
            SIZES._replace(**overrides),
            positions=positions_of(positions),
            value_residual_mix=value_residual_mix,
        )
        randomise(block)
        return block

    return make


@pytest.mark.parametrize("mix", [None, "learned", "constant", "swapped"])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_equals_its_formula(mix: Any, grad: bool, make_attention: Callable[..., Attention]) -> None:
    block, x = make_attention(value_residual_mix=mix), torch.randn(3, 5, DIM) * 2
    first = None if mix is None else torch.randn(3, HEADS, 5, DIM_HEAD)
    with torch.set_grad_enabled(grad):
        actual = block(x, first)
    torch.testing.assert_close(actual, naive_attention(block, x, first), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "flash_attn",
    [True, False, FlashAttentionConfig(enable_flash=False, enable_mem_efficient=False), FlashAttentionConfig()],
    ids=["flash", "explicit", "math", "any"],
)
@pytest.mark.parametrize("scale", [None, 0.1])
def test_attention_hands_scale_and_backend_down(
    flash_attn: Any, scale: float | None, make_attention: Callable[..., Attention]
) -> None:
    block, x = make_attention(flash_attn=flash_attn, scale=scale, positions=None), torch.randn(2, 5, DIM)
    assert block.attend.flash_attn == flash_attn
    assert block.attend.scale == (0.5 if scale is None else scale)
    torch.testing.assert_close(block(x), naive_attention(block, x), rtol=1e-4, atol=1e-5)


def test_polar_attention_scales_by_the_head_and_not_by_the_doubled_width(
    make_attention: Callable[..., Attention],
) -> None:
    block, x = make_attention(positions="polar"), torch.randn(2, 5, DIM)
    embedding = block.positions
    assert isinstance(embedding, PolarEmbedding)
    q, k, v = block.to_qkv(block.norm(x)).view(2, 5, 3, HEADS, DIM_HEAD).permute(2, 0, 3, 1, 4)
    positions = torch.arange(5.0)[:, None] * embedding.inv_freqs
    scores = torch.einsum(
        "bhie,bhje,hije->bhij",
        F.softplus(q),
        F.softplus(k),
        (positions[:, None] - positions - embedding.bias.clamp(-2 * math.pi, 0)[:, None, None]).cos(),
    )
    out = (scores / math.sqrt(DIM_HEAD)).softmax(-1) @ v
    gated = out * block.to_gates(block.norm(x)).sigmoid().transpose(1, 2)[..., None]
    expected = block.to_out(gated.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(block(x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "keys"),
    [
        ("rotary", {"rotary_embed.freqs": (2,)}),
        ("polar", {"pope_embed.inv_freqs": (4,), "pope_embed.bias": (2, 4)}),
        (None, {}),
    ],
)
def test_attention_has_upstream_keys(positions: str | None, keys: dict[str, tuple[int, ...]]) -> None:
    block = Attention(DIM, SIZES, positions=positions_of(positions), value_residual_mix="learned")
    assert {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} == {
        **keys,
        "norm.gamma": (6,),
        "to_qkv.weight": (24, 6),
        "to_value_residual_mix.weight": (2, 6),
        "to_value_residual_mix.bias": (2,),
        "to_gates.weight": (2, 6),
        "to_gates.bias": (2,),
        "to_out.0.weight": (6, 8),
    }


def test_output_dropout_acts_in_training_only(make_attention: Callable[..., Attention]) -> None:
    block, x = make_attention(attn_dropout=0.5), torch.randn(10, 5, DIM)
    assert 0.4 < (block(x)[0] == 0).float().mean() < 0.6
    torch.testing.assert_close(block.eval()(x), naive_attention(block, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Attention, LinearAttention])
def test_value_residual_without_first_values_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="pass `first_values`"):
        kind(DIM, SIZES, value_residual_mix="constant")(torch.randn(1, 3, DIM))


@pytest.mark.parametrize("positions", ["rotary", "polar"])
@pytest.mark.parametrize(
    "layer", ["norm", "to_qkv", "to_gates", "to_value_residual_mix", "to_out", "to_out.0", "to_out.1"]
)
def test_hook_on_a_layer_sees_what_the_layer_returned_and_disturbs_nothing(
    layer: str, positions: str, make_attention: Callable[..., Attention]
) -> None:
    block = make_attention(value_residual_mix="learned", positions=positions)
    x, first = torch.randn(2, 5, DIM), torch.randn(2, HEADS, 5, DIM_HEAD)
    expected = block(x, first)
    expected_grads = torch.autograd.grad(expected[0].square().sum(), list(block.parameters())[-3:])
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    hooked = block.get_submodule(layer)
    hooked.register_forward_hook(lambda _module, inputs, out: seen.append((inputs[0], out, out.clone())))
    actual = block(x, first)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual[0].square().sum(), list(block.parameters())[-3:]), expected_grads
    )
    ((given, kept, copied),) = seen
    assert torch.equal(kept, copied), "what a hook keeps must not be overwritten afterwards"
    torch.testing.assert_close(nn.Module.__call__(hooked, given), copied)


def test_hook_on_to_qkv_sees_the_projection_without_gradients_too(make_attention: Callable[..., Attention]) -> None:
    block, x, kept = make_attention(), torch.randn(2, 5, DIM), []
    block.to_qkv.register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    with torch.no_grad():
        block(x)
    torch.testing.assert_close(kept[0], F.linear(block.norm(x), block.to_qkv.weight))


class Doubling(nn.Module):
    """Something else in place of a Linear, as LoRA and quantisation put it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        self.kept = 2 * self.linear(x)
        self.copied = self.kept.clone()
        return self.kept


@pytest.mark.parametrize("layer", ["to_qkv", "to_gates", "to_out.0"])
@pytest.mark.parametrize("grad", [True, False])
def test_layers_may_be_replaced(layer: str, grad: bool, make_attention: Callable[..., Attention]) -> None:
    block, x = make_attention(), torch.randn(2, 5, DIM)
    linear = block.get_submodule(layer)
    assert isinstance(linear, nn.Linear)
    doubled = copy.deepcopy(block)
    with torch.no_grad():
        for parameter in doubled.get_submodule(layer).parameters():
            parameter.mul_(2)
    replaced = Doubling(linear)
    block.set_submodule(layer, replaced)
    with torch.set_grad_enabled(grad):
        actual = block(x)
    torch.testing.assert_close(actual, naive_attention(doubled, x), rtol=1e-4, atol=1e-5)
    assert torch.equal(replaced.kept, replaced.copied), "what it keeps must not be overwritten afterwards"


# LinearAttention


def naive_linear_attention(block: LinearAttention, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the block from its parameters, one pair of features at a time."""
    weights = dict(block.named_parameters())
    heads = weights["temperature"].shape[0]
    normed = x / x.norm(dim=-1, keepdim=True) * x.shape[-1] ** 0.5 * weights["norm.gamma"]
    q, k, v = (
        part.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)
        for part in (normed @ weights["to_qkv.0.weight"].T).chunk(3, -1)
    )
    own = v.mT
    if first is not None:
        first = first.mT
        mix = torch.full((*x.shape[:2], heads), 0.5)
        if block.value_residual_mix != "constant":
            projected = normed @ weights["to_value_residual_mix.weight"].T + weights["to_value_residual_mix.bias"]
            mix = 1 / (1 + torch.exp(-projected))
        mix = mix.transpose(1, 2)[:, :, None]
        v = v + first * (mix - v) if block.value_residual_mix == "swapped" else (1 - mix) * v + mix * first
    out = torch.zeros_like(v)
    for b, h, i in product(range(v.shape[0]), range(heads), range(v.shape[2])):
        cosines = [torch.nn.functional.cosine_similarity(q[b, h, i], key, dim=0) for key in k[b, h]]
        scores = torch.stack([torch.exp(8 * cosine * torch.exp(weights["temperature"][h, 0, 0])) for cosine in cosines])
        out[b, h, i] = (scores[:, None] * v[b, h]).sum(0) / scores.sum()
    merged = out.permute(0, 3, 1, 2).flatten(-2)
    return merged @ weights["to_out.1.weight"].T, own


@pytest.mark.parametrize("mix", [None, "learned", "constant", "swapped"])
def test_linear_attention_equals_its_formula(mix: Any, randomise: Callable[[nn.Module], None]) -> None:
    block = LinearAttention(DIM, SIZES, value_residual_mix=mix)
    randomise(block)
    x, first = torch.randn(3, 7, DIM), None if mix is None else torch.randn(3, HEADS, 7, DIM_HEAD)
    torch.testing.assert_close(block(x, first), naive_linear_attention(block, x, first), rtol=1e-4, atol=1e-5)


def test_linear_attention_has_upstream_keys() -> None:
    block = LinearAttention(DIM, SIZES, value_residual_mix="swapped")
    assert {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} == {
        "temperature": (2, 1, 1),
        "norm.gamma": (6,),
        "to_qkv.0.weight": (24, 6),
        "to_value_residual_mix.weight": (2, 6),
        "to_value_residual_mix.bias": (2,),
        "to_out.1.weight": (6, 8),
    }


def test_linear_attention_normalises_half_types_in_float32(randomise: Callable[[nn.Module], None]) -> None:
    block, x = LinearAttention(DIM, SIZES), torch.randn(1, 3000, DIM)
    randomise(block)
    with torch.no_grad():
        block.to_qkv[0].weight[:16] *= 2000  # queries and keys whose length along the sequence overflows float16
    expected, out = block(x)[0], block.half()(x.half())[0]
    assert out.dtype == torch.float16
    assert (out.float() - expected).norm() < 0.01 * expected.norm()


def test_linear_attention_drops_attention_weights_in_training_only() -> None:
    block, x = LinearAttention(DIM, SIZES._replace(attn_dropout=0.5)), torch.randn(2, 5, DIM)
    assert not torch.equal(block(x)[0], block(x)[0])
    assert torch.equal(block.eval()(x)[0], block(x)[0])
