"""Attention and transformers against explicit loops, and against themselves run another way."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rotary_embedding_torch import RotaryEmbedding as ReferenceRotaryEmbedding
from torch import Tensor, nn

from hunterFormsBS import attend as attend_module
from hunterFormsBS.attend import Attend, Attention, LinearAttention, Transformer
from hunterFormsBS.blocks import attend as scaled_dot_product
from hunterFormsBS.blocks.positions import PolarEmbedding, RotaryEmbedding
from hunterFormsBS.theTypes import FlashAttentionConfig

DIM, HEADS, DIM_HEAD = 6, 2, 4

KERNELS = {
    "flash": True,
    "explicit": False,
    "math": FlashAttentionConfig(enable_flash=False, enable_mem_efficient=False),
    "any": FlashAttentionConfig(),
}
each_kernel = pytest.mark.parametrize("flash_attn", KERNELS.values(), ids=KERNELS)


def naive_attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Compute softmax attention one query at a time, in double precision."""
    batch, heads, length, width = *q.shape[:3], v.shape[-1]
    out = torch.zeros(batch, heads, length, width, dtype=torch.float64)
    q, k, v = q.double(), k.double(), v.double()
    for b, h, i in product(range(batch), range(heads), range(length)):
        scores = [math.exp(scale * float((q[b, h, i] * key).sum())) for key in k[b, h]]
        out[b, h, i] = sum(score * value for score, value in zip(scores, v[b, h], strict=True)) / sum(scores)
    return out.float()


def queries_keys_values(length: int = 5, wide: int = DIM_HEAD) -> tuple[Tensor, Tensor, Tensor]:
    q, k = torch.randn(2, 2, HEADS, length, wide).unbind(0)
    return q, k, torch.randn(2, HEADS, length, DIM_HEAD)


# Attend


@each_kernel
@pytest.mark.parametrize("scale", [None, 0.3, 2.0])
@pytest.mark.parametrize("wide", [DIM_HEAD, 2 * DIM_HEAD], ids=["rotary widths", "polar widths"])
def test_attend_equals_a_softmax_written_out(flash_attn: Any, scale: float | None, wide: int) -> None:
    q, k, v = queries_keys_values(wide=wide)
    out = Attend(flash_attn=flash_attn, scale=scale)(q, k, v)
    expected = naive_attend(q, k, v, wide**-0.5 if scale is None else scale)
    torch.testing.assert_close(out, expected)


@each_kernel
def test_gradients_of_attend_do_not_depend_on_the_kernel(flash_attn: Any) -> None:
    qkv, weight = queries_keys_values(wide=8), torch.randn(2, HEADS, 5, DIM_HEAD)
    grads: list[Any] = []
    for kernel in (flash_attn, False):
        leaves = [t.clone().requires_grad_() for t in qkv]
        grads.append(torch.autograd.grad((Attend(flash_attn=kernel)(*leaves) * weight).sum(), leaves))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keys", [5, 7])
def test_products_by_heads_give_what_pytorchs_kernel_gives(
    keys: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Packed, as they come from one linear map, and with values of another width.
    packed = torch.randn(3, 7, 3, HEADS, 8, dtype=dtype)
    q, k, v = (packed[:, :, index].transpose(1, 2).clone(memory_format=torch.preserve_format) for index in range(3))
    weight, results = torch.randn(3, HEADS, 7, 6, dtype=dtype), []
    for short in (0, 7):
        monkeypatch.setattr(scaled_dot_product, "SHORT", short)
        leaves = [t.detach().requires_grad_() for t in (q, k[:, :, :keys], v[:, :, :keys, :6])]
        out = Attend()(*leaves)
        results.append((out, torch.autograd.grad((out * weight).sum(), leaves)))
        with torch.no_grad():
            torch.testing.assert_close(Attend()(*leaves), out, rtol=0, atol=0)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("dtype", "length", "compiling", "autocast", "dropout", "flash_attn", "expected"),
    [
        (torch.float32, 5, False, False, 0.0, True, True),
        (torch.float32, 5, False, False, 0.1, True, False),
        (torch.float32, 5, False, False, 0.0, FlashAttentionConfig(), False),
        (torch.float32, 5, False, True, 0.0, True, False),
        (torch.float32, 5, True, False, 0.0, True, False),
        (torch.float32, scaled_dot_product.SHORT + 1, False, False, 0.0, True, False),
        (torch.bfloat16, 5, False, False, 0.0, True, False),
    ],
)
def test_products_by_heads_serve_short_sequences_of_full_precision(
    dtype: torch.dtype,
    length: int,
    compiling: bool,
    autocast: bool,
    dropout: float,
    flash_attn: Any,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    by_heads = scaled_dot_product.attend_by_heads
    monkeypatch.setattr(scaled_dot_product, "attend_by_heads", lambda *a: calls.append(1) or by_heads(*a))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    q, k, v = (t.to(dtype) for t in queries_keys_values(length))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        Attend(attn_dropout=dropout, flash_attn=flash_attn)(q, k, v)
    assert bool(calls) is expected


@each_kernel
def test_dropout_drops_attention_weights_in_training_only(flash_attn: Any) -> None:
    # All keys alike: each of 10 weights is 0.1, and 0.2 or 0 once half of them are dropped.
    q, k, v = torch.zeros(1, 3, 30, 4), torch.zeros(1, 3, 10, 4), torch.ones(1, 3, 10, 4)
    attend = Attend(attn_dropout=0.5, flash_attn=flash_attn)
    kept = attend(q, k, v) / 0.2
    torch.testing.assert_close(kept, kept.round())
    assert kept.std() > 0.5
    assert 4 < kept.mean() < 6
    torch.testing.assert_close(attend.eval()(q, k, v), torch.ones(1, 3, 30, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_kernel
def test_half_types_come_back_as_they_were_and_nearly_right(dtype: torch.dtype, flash_attn: Any) -> None:
    q, k, v = (t.to(dtype) for t in queries_keys_values())
    out = Attend(flash_attn=flash_attn)(q, k, v)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), naive_attend(q, k, v, 0.5), rtol=0.03, atol=0.03)


def test_explicit_softmax_of_half_types_adds_up_in_float32() -> None:
    # 3000 equal weights: in bfloat16 their sum would stop growing at 256.
    q, k, v = (torch.zeros(1, 1, n, 2, dtype=torch.bfloat16) for n in (1, 3000, 3000))
    out = Attend(flash_attn=False)(q, k, v + 1)
    torch.testing.assert_close(out.float(), torch.ones(1, 1, 1, 2), rtol=0.03, atol=0)


@pytest.mark.parametrize("allowed", list(product([False, True], repeat=3))[1:])
def test_configuration_restricts_the_kernels_during_the_call_only(
    allowed: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def enabled() -> tuple[bool, bool, bool]:
        cuda = torch.backends.cuda
        return cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()

    seen: list[tuple[bool, bool, bool]] = []

    def recorder(q: Tensor, k: Tensor, v: Tensor, **_keywords: Any) -> Tensor:
        seen.append(enabled())
        return v

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorder)
    before = enabled()
    Attend(flash_attn=FlashAttentionConfig(*allowed))(*queries_keys_values())
    Attend(flash_attn=True)(*queries_keys_values(scaled_dot_product.SHORT + 1))
    assert seen == [allowed, before]
    assert enabled() == before


# SageAttention


@pytest.fixture
def sage(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Install a package sageattention that computes softmax attention and notes how it was called."""
    calls: list[dict[str, Any]] = []

    def sageattn(q: Tensor, k: Tensor, v: Tensor, **keywords: Any) -> Tensor:
        calls.append(keywords)
        assert q.shape[-1] == k.shape[-1] == v.shape[-1]
        return naive_attend(q, k, v, keywords["sm_scale"])

    module = SimpleNamespace(sageattn=sageattn, __spec__=SimpleNamespace(name="sageattention"))
    monkeypatch.setitem(sys.modules, "sageattention", module)  # type: ignore[arg-type]
    scaled_dot_product._warn_once.cache_clear()
    yield calls
    scaled_dot_product._warn_once.cache_clear()


def pretend(**overrides: Any) -> Any:
    properties = {"is_cuda": True, "dtype": torch.float16, "requires_grad": False, "device": torch.device("cuda")}
    return SimpleNamespace(**(properties | overrides))


def test_sage_attention_falls_back_with_one_warning(sage: list[dict[str, Any]]) -> None:
    q, k, v = queries_keys_values()
    attend = Attend(sage_attention=True)
    with pytest.warns(UserWarning, match=r"sage_attention=True has no effect here.*on cpu"):
        out = attend(q, k, v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Attend(sage_attention=True)(q, k, v)
    torch.testing.assert_close(out, naive_attend(q, k, v, 0.5))
    assert not sage


def test_sage_attention_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, sage: list[dict[str, Any]]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.warns(UserWarning, match="sageattention is not installed"):
        Attend(sage_attention=True)(*queries_keys_values())


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (pretend(is_cuda=False, device=torch.device("cpu")), "on cpu"),
        (pretend(dtype=torch.float32), r"float16 or bfloat16, and these are torch\.float32"),
        (pretend(requires_grad=True), "no backward pass"),
    ],
)
@pytest.mark.usefixtures("sage")
def test_sage_attention_is_not_used_where_it_would_fail_or_lose_gradients(tensor: Any, reason: str) -> None:
    fine = pretend()
    with pytest.warns(UserWarning, match=reason):
        assert not Attend._can_use_sage(tensor, fine, fine)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("sage")
def test_sage_attention_is_used_for_half_types_on_cuda_without_gradients(dtype: torch.dtype) -> None:
    tensor = pretend(dtype=dtype)
    assert Attend._can_use_sage(tensor, tensor, tensor)
    needs_gradients = pretend(dtype=dtype, requires_grad=True)
    for where in range(3):
        tensors = [needs_gradients if index == where else tensor for index in range(3)]
        with torch.no_grad():
            assert Attend._can_use_sage(*tensors)
        scaled_dot_product._warn_once.cache_clear()
        with pytest.warns(UserWarning, match="no backward pass"):
            assert not Attend._can_use_sage(*tensors)


@pytest.mark.parametrize("wide", [DIM_HEAD, 2 * DIM_HEAD])
def test_sage_attention_is_called_with_scale_layout_and_one_width(
    wide: int, sage: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Attend, "_can_use_sage", staticmethod(lambda *_: True))
    q, k, v = queries_keys_values(wide=wide)
    torch.testing.assert_close(Attend(sage_attention=True, scale=0.7)(q, k, v), naive_attend(q, k, v, 0.7))
    assert sage == [{"tensor_layout": "HND", "is_causal": False, "sm_scale": 0.7}]


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
    if block.rotary_embed is not None:
        rotary = ReferenceRotaryEmbedding(dim=q.shape[-1])
        q, k = rotary.rotate_queries_or_keys(q), rotary.rotate_queries_or_keys(k)
    gates = 1 / (1 + torch.exp(-(normed @ weights["to_gates.weight"].T + weights["to_gates.bias"])))
    out = naive_attend(q.detach(), k.detach(), v.detach(), scale) * gates.transpose(1, 2)[..., None]
    merged = torch.cat([out[:, head] for head in range(heads)], dim=-1)
    return merged @ weights["to_out.0.weight"].T, own


@pytest.fixture
def make_attention(randomise: Callable[[nn.Module], None]) -> Callable[..., Attention]:
    def make(**overrides: Any) -> Attention:
        rotary = {} if "pope_embed" in overrides else {"rotary_embed": RotaryEmbedding(DIM_HEAD)}
        block = Attention(DIM, **({"heads": HEADS, "dim_head": DIM_HEAD} | rotary | overrides))
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


@each_kernel
@pytest.mark.parametrize("scale", [None, 0.1])
def test_attention_hands_scale_and_kernel_down(
    flash_attn: Any, scale: float | None, make_attention: Callable[..., Attention]
) -> None:
    block, x = make_attention(flash_attn=flash_attn, scale=scale, rotary_embed=None), torch.randn(2, 5, DIM)
    assert block.attend.flash_attn == flash_attn
    assert block.attend.scale == (0.5 if scale is None else scale)
    torch.testing.assert_close(block(x), naive_attention(block, x), rtol=1e-4, atol=1e-5)


def test_polar_attention_scales_by_the_head_and_not_by_the_doubled_width(
    make_attention: Callable[..., Attention],
) -> None:
    embedding = PolarEmbedding(DIM_HEAD, HEADS)
    block, x = make_attention(pope_embed=embedding), torch.randn(2, 5, DIM)
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


def test_attention_has_upstream_keys() -> None:
    block = Attention(DIM, heads=2, dim_head=4, rotary_embed=RotaryEmbedding(4), value_residual_mix="learned")
    assert {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} == {
        "rotary_embed.freqs": (2,),
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


def test_both_embeddings_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="pass one of them"):
        Attention(DIM, heads=2, dim_head=4, rotary_embed=RotaryEmbedding(4), pope_embed=PolarEmbedding(4, 2))


@pytest.mark.parametrize("kind", [Attention, LinearAttention])
def test_value_residual_without_first_values_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="pass `first_values`"):
        kind(DIM, heads=2, dim_head=4, value_residual_mix="constant")(torch.randn(1, 3, DIM))


@pytest.mark.parametrize("position", ["rotary", "polar"])
@pytest.mark.parametrize(
    "layer", ["norm", "to_qkv", "to_gates", "to_value_residual_mix", "to_out", "to_out.0", "to_out.1"]
)
def test_hook_on_a_layer_sees_what_the_layer_returned_and_disturbs_nothing(
    layer: str, position: str, make_attention: Callable[..., Attention]
) -> None:
    embedding = {"pope_embed": PolarEmbedding(DIM_HEAD, HEADS)} if position == "polar" else {}
    block = make_attention(value_residual_mix="learned", **embedding)
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
    own = v
    if first is not None:
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
    block = LinearAttention(DIM, heads=HEADS, dim_head=DIM_HEAD, value_residual_mix=mix)
    randomise(block)
    x, first = torch.randn(3, 7, DIM), None if mix is None else torch.randn(3, HEADS, DIM_HEAD, 7)
    torch.testing.assert_close(block(x, first), naive_linear_attention(block, x, first), rtol=1e-4, atol=1e-5)


def test_linear_attention_has_upstream_keys() -> None:
    block = LinearAttention(DIM, heads=2, dim_head=4, value_residual_mix="swapped")
    assert {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} == {
        "temperature": (2, 1, 1),
        "norm.gamma": (6,),
        "to_qkv.0.weight": (24, 6),
        "to_value_residual_mix.weight": (2, 6),
        "to_value_residual_mix.bias": (2,),
        "to_out.1.weight": (6, 8),
    }


def test_linear_attention_normalises_half_types_in_float32(randomise: Callable[[nn.Module], None]) -> None:
    block, x = LinearAttention(DIM, heads=2, dim_head=4), torch.randn(1, 3000, DIM)
    randomise(block)
    with torch.no_grad():
        block.to_qkv[0].weight[:16] *= 2000  # queries and keys whose length along the sequence overflows float16
    expected, out = block(x)[0], block.half()(x.half())[0]
    assert out.dtype == torch.float16
    assert (out.float() - expected).norm() < 0.01 * expected.norm()


def test_linear_attention_drops_attention_weights_in_training_only() -> None:
    block, x = LinearAttention(DIM, heads=2, dim_head=4, attn_dropout=0.5), torch.randn(2, 5, DIM)
    assert not torch.equal(block(x)[0], block(x)[0])
    assert torch.equal(block.eval()(x)[0], block(x)[0])


# Transformer

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "polar": {"pope_embed": True},
    "linear": {"linear_attn": True},
    "streams": {"num_residual_streams": 3},
    "fracs": {"num_residual_streams": 2, "num_residual_fracs": 2, "mc_hyper_conn_sinkhorn_iters": 2},
}


@pytest.fixture
def make_transformer(randomise: Callable[[nn.Module], None]) -> Callable[..., Transformer]:
    def make(**overrides: Any) -> Transformer:
        arguments: dict[str, Any] = {"depth": 2, "heads": HEADS, "dim_head": DIM_HEAD} | overrides
        if arguments.pop("pope_embed", False):
            arguments["pope_embed"] = PolarEmbedding(DIM_HEAD, HEADS)
        elif not arguments.get("linear_attn"):
            arguments["rotary_embed"] = RotaryEmbedding(DIM_HEAD)
        transformer = Transformer(DIM, **arguments)
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
    torch.testing.assert_close(torch.cat(values), first)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [1, 7, 17, 10**6])
def test_blocks_of_any_size_give_the_same_outputs_and_gradients(
    variant: str, tokens: int, make_transformer: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_transformer(keep_values=True, **VARIANTS[variant]).double()
    second = make_transformer(value_residual_mix="learned", **VARIANTS[variant]).double()
    x, results = torch.randn(6, 5, DIM, dtype=torch.float64, requires_grad=True), []
    for tokens_per_block in (10**6, tokens):
        monkeypatch.setattr(attend_module, "TOKENS_PER_BLOCK", tokens_per_block)
        middle, values = first(x)
        out, nothing = second(middle, values)
        assert nothing == ()
        leaves = [x, *(p for p in (*first.parameters(), *second.parameters()) if p.requires_grad)]
        results.append((out, torch.cat(values), *torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 14, 28, 100])
def test_a_block_holds_whole_items_and_no_more_tokens_than_asked_for(
    tokens: int, make_transformer: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer, x = make_transformer(num_residual_streams=2), torch.randn(12, 7, DIM)
    monkeypatch.setattr(attend_module, "TOKENS_PER_BLOCK", tokens)
    sizes = [len(block) for block in transformer._blocks(x)]
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
    monkeypatch.setattr(attend_module, "TOKENS_PER_BLOCK", 12)
    transformer = make_transformer(value_residual_mix="learned", attn_dropout=0.3, ff_dropout=0.3, **VARIANTS[variant])
    x, results = torch.randn(6, 5, DIM, requires_grad=True), []
    source = make_transformer(keep_values=True, **VARIANTS[variant])
    values = tuple(value.detach() for value in source(x)[1])
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
    monkeypatch.setattr(attend_module, "TOKENS_PER_BLOCK", 10)
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
        depth=3,
        heads=3,
        dim_head=2,
        attn_dropout=0.1,
        flash_attn=False,
        sage_attention=True,
        scale=0.9,
        ff_mult=5,
        ff_dropout=0.2,
        value_residual_mix="constant",
        rotary_embed=(rotary := RotaryEmbedding(2)),
    )
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
        assert attention.rotary_embed is rotary
        assert feedforward.net[1].weight.shape == (5 * DIM, DIM)
        assert feedforward.net[3].p == feedforward.net[5].p == 0.2


def test_wrapped_sublayers_start_on_streams_in_turn() -> None:
    transformer = Transformer(DIM, depth=2, heads=1, dim_head=2, num_residual_streams=3, mc_hyper_conn_sinkhorn_iters=4)
    sublayers = [sublayer for layer in transformer.layers for sublayer in layer]  # type: ignore[union-attr]
    chosen = [int(sublayer.static_alpha[:, 0].argmax()) for sublayer in sublayers]  # type: ignore[index, union-attr]
    assert chosen == [0, 1, 2, 0]
