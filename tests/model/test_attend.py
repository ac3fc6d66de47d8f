"""Scaled dot-product attention against explicit loops, whichever way it is computed."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hunterFormsBS.attend import Attend
from hunterFormsBS.kernels import scaledDotProduct
from hunterFormsBS.kernels.seam import KERNELS
from hunterFormsBS.theTypes import FlashAttentionConfig, ParametersScaledDotProduct

HEADS, DIM_HEAD = 2, 4

WAYS = {
    "flash": True,
    "explicit": False,
    "math": FlashAttentionConfig(enable_flash=False, enable_mem_efficient=False),
    "any": FlashAttentionConfig(),
}
each_way = pytest.mark.parametrize("flash_attn", WAYS.values(), ids=WAYS)


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


@each_way
@pytest.mark.parametrize("scale", [None, 0.3, 2.0])
@pytest.mark.parametrize("wide", [DIM_HEAD, 2 * DIM_HEAD], ids=["rotary widths", "polar widths"])
def test_attend_equals_a_softmax_written_out(flash_attn: Any, scale: float | None, wide: int) -> None:
    q, k, v = queries_keys_values(wide=wide)
    out = Attend(flash_attn=flash_attn, scale=scale)(q, k, v)
    expected = naive_attend(q, k, v, wide**-0.5 if scale is None else scale)
    torch.testing.assert_close(out, expected)


@each_way
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
        monkeypatch.setattr(scaledDotProduct, "SHORT", short)
        leaves = [t.detach().requires_grad_() for t in (q, k[:, :, :keys], v[:, :, :keys, :6])]
        out = Attend()(*leaves)
        results.append((out, torch.autograd.grad((out * weight).sum(), leaves)))
        with torch.no_grad():
            # Longer sequences have a kernel of their own where no gradient is recorded.
            torch.testing.assert_close(Attend()(*leaves), out, **({} if short == 0 else {"rtol": 0, "atol": 0}))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("dtype", "length", "compiling", "autocast", "dropout", "flash_attn", "expected"),
    [
        (torch.float32, 5, False, False, 0.0, True, True),
        (torch.float32, 5, False, False, 0.1, True, False),
        (torch.float32, 5, False, False, 0.0, FlashAttentionConfig(), False),
        (torch.float32, 5, False, True, 0.0, True, False),
        (torch.float32, 5, True, False, 0.0, True, False),
        (torch.float32, scaledDotProduct.SHORT + 1, False, False, 0.0, True, False),
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
    by_heads, results = KERNELS["by_heads"].run, []
    monkeypatch.setattr(KERNELS["by_heads"], "run", lambda *a: results.append(by_heads(*a)) or results[-1])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    q, k, v = (t.to(dtype) for t in queries_keys_values(length))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        Attend(attn_dropout=dropout, flash_attn=flash_attn)(q, k, v)
    assert any(result is not None for result in results) is expected


@each_way
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
@each_way
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
    Attend(flash_attn=True)(*(t.requires_grad_() for t in queries_keys_values(scaledDotProduct.SHORT + 1)))
    assert seen == [allowed, before]
    assert enabled() == before


# SageAttention

PARAMETERS = ParametersScaledDotProduct(scale=0.5, dropout=0.0, flash_attn=True, sage_attention=True)


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
    scaledDotProduct._warn_once.cache_clear()
    yield calls
    scaledDotProduct._warn_once.cache_clear()


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
        assert KERNELS["sage"].run(tensor, fine, fine, PARAMETERS) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("sage")
def test_sage_attention_is_used_for_half_types_on_cuda_without_gradients(dtype: torch.dtype) -> None:
    tensor = pretend(dtype=dtype)
    assert scaledDotProduct._why_not_sage(tensor, tensor, tensor) is None
    needs_gradients = pretend(dtype=dtype, requires_grad=True)
    for where in range(3):
        tensors = [needs_gradients if index == where else tensor for index in range(3)]
        with torch.no_grad():
            assert scaledDotProduct._why_not_sage(*tensors) is None
        scaledDotProduct._warn_once.cache_clear()
        with pytest.warns(UserWarning, match="no backward pass"):
            assert KERNELS["sage"].run(*tensors, PARAMETERS) is None


@pytest.mark.parametrize("wide", [DIM_HEAD, 2 * DIM_HEAD])
def test_sage_attention_is_called_with_scale_layout_and_one_width(
    wide: int, sage: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaledDotProduct, "_why_not_sage", lambda *_: None)
    q, k, v = queries_keys_values(wide=wide)
    torch.testing.assert_close(Attend(sage_attention=True, scale=0.7)(q, k, v), naive_attend(q, k, v, 0.7))
    assert sage == [{"tensor_layout": "HND", "is_causal": False, "sm_scale": 0.7}]
