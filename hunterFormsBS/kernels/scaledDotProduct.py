"""Softmax attention without the whole attention matrix.

Axis letters in this module: b sequences, n positions, h heads, e features of one head.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache, partial
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hunterFormsBS.kernels.derivatives import current_autocast, gradients_of
from hunterFormsBS.kernels.internals import softmax_backward_
from hunterFormsBS.kernels.linear import has_faster_products, linear
from hunterFormsBS.kernels.seam import Where, kernel
from hunterFormsBS.operations.attentionWeights import attention_weights
from hunterFormsBS.theTypes import FlashAttentionConfig, ParametersScaledDotProduct

ROWS_OF_SCORES = 512
"""Queries per product of `by_sequences`, so that scores stay in the cache."""

FEW_THREADS = 4
"""With more threads, PyTorch's kernel, which gives each thread its own heads, scales better than `by_sequences`, whose
threads share each product."""

SHORT = 256
"""Up to this many positions, products of one head of all sequences are faster than PyTorch's kernel on a CPU."""


@kernel(Where.EVERYWHERE)
def sage(
    q: Tensor, k: Tensor, v: Tensor, parameters: ParametersScaledDotProduct, seen: Tensor | None = None
) -> Tensor | None:
    """Attend by SageAttention, if requested; if impossible, warn once."""
    if not parameters.sage_attention:
        return None
    if reason := "its kernels know no windows" if seen is not None else _why_not_sage(q, k, v):
        if not torch.compiler.is_compiling():
            _warn_once(f"sage_attention=True has no effect here: {reason}. PyTorch's attention is used.")
        return None
    from sageattention import sageattn  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

    v, width = _padded(v, q.shape[-1])
    return cast(Tensor, sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=parameters.scale))[..., :width]


def _why_not_sage(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if importlib.util.find_spec("sageattention") is None:
        return "the package sageattention is not installed"
    if not q.is_cuda:
        return f"it needs CUDA tensors, and these are on {q.device.type}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, and these are {q.dtype}"
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return "gradients are needed, and its kernels have no backward pass"
    return None


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


@kernel(Where.EVERYWHERE, ordinary=True)
def fused(
    q: Tensor, k: Tensor, v: Tensor, parameters: ParametersScaledDotProduct, seen: Tensor | None = None
) -> Tensor | None:
    """Attend by PyTorch's `scaled_dot_product_attention`, with any allowed backend."""
    q, k = q.to(v.dtype), k.to(v.dtype)
    v, width = _padded(v, q.shape[-1])
    keywords: dict[str, Any] = {} if seen is None else {"attn_mask": seen}
    keywords |= {"dropout_p": parameters.dropout, "scale": parameters.scale}
    attend = partial(F.scaled_dot_product_attention, q, k, v, **keywords)
    if not isinstance(parameters.flash_attn, FlashAttentionConfig):
        return attend()[..., :width]
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION)
    allowed = [backend for backend, enabled in zip(backends, parameters.flash_attn, strict=True) if enabled]
    with sdpa_kernel(allowed):
        return attend()[..., :width]


@kernel(Where.EAGER)
def fused_twice(
    q: Tensor, k: Tensor, v: Tensor, parameters: ParametersScaledDotProduct, seen: Tensor | None = None
) -> Tensor | None:
    """Attend as `fused`, with a differentiable gradient, which PyTorch's backends lack.

    With dropout the formula would drop other weights than PyTorch's backend.
    """
    if parameters.dropout or not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))):
        return None
    out = fused.run(q, k, v, parameters, seen)
    return cast(Tensor, _GradientByFormula.apply(out, q, k, v, parameters.scale, seen))  # type: ignore[no-untyped-call]


def _padded(v: Tensor, width: int) -> tuple[Tensor, int]:
    """Return `v` padded to the width of the queries, as fast backends require, and its original width."""
    own = v.shape[-1]
    return (v if own == width else F.pad(v, (0, width - own))), own


@kernel(Where.CPU)
def by_heads(
    q: Tensor, k: Tensor, v: Tensor, parameters: ParametersScaledDotProduct, seen: Tensor | None = None
) -> Tensor | None:
    """Attend one head of all sequences at a time, so that its scores stay in the cache; for short sequences.

    Attention weights are recomputed in the backward pass, never stored. The memory layout of the result is `(b, n, h,
    e)`, as with PyTorch's kernel.
    """
    if (
        not _are_ordinary_heads(q, k, v, parameters, seen)
        or max(q.shape[-2], k.shape[-2]) > SHORT
        or q.dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    if torch.is_grad_enabled():
        return cast(Tensor, _AttendByHeads.apply(q, k, v, parameters.scale))  # type: ignore[no-untyped-call]
    return _by_heads(q, k, v, parameters.scale)


@kernel(Where.CPU)
def by_sequences(
    q: Tensor, k: Tensor, v: Tensor, parameters: ParametersScaledDotProduct, seen: Tensor | None = None
) -> Tensor | None:
    """Attend one head of one sequence at a time by faster products, without gradients; for long sequences.

    The memory layout of the result is `(b, n, h, e)`, as with PyTorch's kernel.
    """
    if (
        not _are_ordinary_heads(q, k, v, parameters, seen)
        or (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)))
        or not q.dtype == k.dtype == torch.float32
        or v.dtype not in (torch.float32, torch.bfloat16)
        or torch.is_autocast_enabled("cpu")
        or torch.get_num_threads() > FEW_THREADS
        or torch.backends.cpu.get_cpu_capability() != "AVX512"
        or not has_faster_products(q, k)
    ):
        return None
    out = v.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])
    for index, head in product(range(q.shape[0]), range(q.shape[1])):
        keys, values = k[index, head].contiguous(), v[index, head]
        if values.dtype == torch.float32:
            values = values.T.contiguous()
        queries = q[index, head] * parameters.scale
        for rows, result in zip(
            torch.split(queries, ROWS_OF_SCORES), torch.split(out[index, :, head], ROWS_OF_SCORES), strict=True
        ):
            weights = linear(rows, keys).softmax(-1)
            if values.dtype == torch.float32:
                result.copy_(linear(weights, values))
            else:
                torch.mm(weights.to(values.dtype), values, out=result)
    return rearrange(out, "b n h e -> b h n e")


def _are_ordinary_heads(
    q: Tensor, k: Tensor, v: Tensor, parameters: ParametersScaledDotProduct, seen: Tensor | None
) -> bool:
    """Tell whether all heads attend to all positions, without dropout and with any backend."""
    return (
        seen is None
        and parameters.flash_attn is True
        and not parameters.dropout
        and q.ndim == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
    )


def _by_heads(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    batch, heads, length, width = *q.shape[:3], v.shape[-1]
    out, head_out = v.new_empty(batch, length, heads, width), v.new_empty(batch, length, width)
    weights = _scores(q, k)
    for head in range(heads):
        _weights_of(q[:, head], k[:, head], scale, weights)
        # Products are faster into a contiguous matrix than into every h-th row of the output.
        out[:, :, head] = torch.bmm(weights.to(v.dtype), v[:, head], out=head_out)
    return rearrange(out, "b n h e -> b h n e")


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Return memory for the scores of one head, `(b, queries, keys)`."""
    return q.new_empty(q.shape[0], q.shape[2], k.shape[2])


def _weights_of(q: Tensor, k: Tensor, scale: float, out: Tensor) -> None:
    torch.baddbmm(out, q, k.mT, beta=0, alpha=scale, out=out)
    torch.softmax(out, -1, out=out)


def _formula(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, *, scale: float) -> Tensor:
    return attention_weights(q, k, scale, seen).to(v.dtype) @ v


class _GradientByFormula(torch.autograd.Function):
    """The output of a PyTorch backend, with its gradient; for second derivatives, with that of the formula."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, out: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor | None
    ) -> Tensor:
        ctx.scale = scale
        ctx.autocast = current_autocast(q)
        ctx.save_for_backward(q, k, v, seen)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not torch.is_grad_enabled():
            return grad, None, None, None, None, None
        formula, needs = partial(_formula, scale=ctx.scale), (*ctx.needs_input_grad[1:4], False)
        gradients = gradients_of(formula, ctx.saved_tensors, needs, (grad,), ctx.autocast)
        return None, *gradients[:3], None, None


class _AttendByHeads(torch.autograd.Function):
    """Differentiable `_by_heads`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.scale = scale
        ctx.autocast = current_autocast(q)
        ctx.save_for_backward(q, k, v)
        return _by_heads(q, k, v, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = partial(_formula, scale=ctx.scale)
            return (*gradients_of(formula, (q, k, v), ctx.needs_input_grad[:3], (grad,), ctx.autocast), None)
        # Heads first: each head's gradients are contiguous matrices.
        by_head = [t.new_empty(t.shape[1], t.shape[0], *t.shape[2:]) for t in (q, k, v)]
        weights, grad_scores = _scores(q, k), _scores(q, k)
        for head, (grad_q, grad_k, grad_v) in enumerate(zip(*by_head, strict=True)):
            _weights_of(q[:, head], k[:, head], ctx.scale, weights)
            torch.bmm(weights.mT, grad[:, head], out=grad_v)
            torch.bmm(grad[:, head], v[:, head].mT, out=grad_scores)
            softmax_backward_(grad_scores, weights)
            torch.baddbmm(grad_q, grad_scores, k[:, head], beta=0, alpha=ctx.scale, out=grad_q)
            torch.baddbmm(grad_k, grad_scores.mT, q[:, head], beta=0, alpha=ctx.scale, out=grad_k)
        grad_q, grad_k, grad_v = (rearrange(t, "h b n e -> b h n e") for t in by_head)
        return grad_q, grad_k, grad_v, None
