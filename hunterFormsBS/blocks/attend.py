"""Scaled dot-product attention, by the kernel that fits.

Axis letters in this module: b sequences, n positions, h heads, e features of one head.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from hunterFormsBS.blocks.norm import at_least_float32
from hunterFormsBS.kernels.seam import is_eager_on_cpu
from hunterFormsBS.theTypes import FlashAttentionConfig

SHORT = 256
"""Up to this many positions, products of one head of all sequences are faster on a CPU than PyTorch's kernel."""


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


class Attend(nn.Module):
    """Scaled dot-product attention, `softmax(scale · q kᵀ) v` [1]_, by the kernel that fits.

    Parameters
    ----------
    attn_dropout : float
        Probability of dropping an attention weight while training.
    flash_attn : bool or FlashAttentionConfig
        True: PyTorch's `scaled_dot_product_attention` and whatever kernel it picks. A configuration restricts its
        choice. False: explicit softmax, which keeps the whole attention matrix.
    sage_attention : bool
        Use SageAttention [2]_ for float16 and bfloat16 on CUDA without gradient (its kernels have no backward pass).
        Elsewhere `scaled_dot_product_attention` takes its place, and one warning says why.
    scale : float, optional
        Factor on the scores; `q.shape[-1] ** -0.5` by default.

    References
    ----------
    .. [1] Vaswani et al., Attention Is All You Need, NeurIPS 2017, arXiv 1706.03762.
    .. [2] Zhang et al., SageAttention, ICLR 2025, arXiv 2410.02367.
    """

    def __init__(
        self,
        *,
        attn_dropout: float = 0.0,
        flash_attn: bool | FlashAttentionConfig = True,
        sage_attention: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.attn_dropout = nn.Dropout(attn_dropout)
        self.flash_attn = flash_attn
        self.sage_attention = sage_attention
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from `q` to `k`, both `(b, h, n, e)`; mix `v`, `(b, h, n, e')` with e' ≤ e, to its own shape."""
        if not self.flash_attn:
            return self._explicit(q, k, v)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        can_use_sage = self.sage_attention and self._can_use_sage(q, k, v)
        if not can_use_sage and self._is_faster_by_heads(q, k):
            return attend_by_heads(q, k, v, scale)
        width = v.shape[-1]
        if q.shape[-1] != width:  # the fast kernels want one width for all three
            v = F.pad(v, (0, q.shape[-1] - width))
        if can_use_sage:
            from sageattention import sageattn  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

            out = cast(Tensor, sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=scale))
        else:
            out = self._scaled_dot_product(q, k, v, scale)
        return out[..., :width]

    def _is_faster_by_heads(self, q: Tensor, k: Tensor) -> bool:
        return (
            self.flash_attn is True
            and is_eager_on_cpu(q)  # First: a graph must not come to depend on the length.
            and max(q.shape[-2], k.shape[-2]) <= SHORT
            and q.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and not (self.training and self.attn_dropout.p > 0)
        )

    def _scaled_dot_product(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        dropout = self.attn_dropout.p if self.training else 0.0
        attend = partial(F.scaled_dot_product_attention, q, k, v, dropout_p=dropout, scale=scale)
        if not isinstance(self.flash_attn, FlashAttentionConfig):
            return attend()
        backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION)
        allowed = [backend for backend, enabled in zip(backends, self.flash_attn, strict=True) if enabled]
        with sdpa_kernel(allowed):
            return attend()

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = q @ k.transpose(-1, -2) * scale
        weights = scores.softmax(dim=-1, dtype=at_least_float32(scores.dtype)).to(v.dtype)
        return cast(Tensor, self.attn_dropout(weights)) @ v

    @staticmethod
    def _can_use_sage(q: Tensor, k: Tensor, v: Tensor) -> bool:
        if importlib.util.find_spec("sageattention") is None:
            reason = "the package sageattention is not installed"
        elif not q.is_cuda:
            reason = f"it needs CUDA tensors, and these are on {q.device.type}"
        elif q.dtype not in (torch.float16, torch.bfloat16):
            reason = f"it needs float16 or bfloat16, and these are {q.dtype}"
        elif torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
            reason = "gradients are needed, and its kernels have no backward pass"
        else:
            return True
        if not torch.compiler.is_compiling():
            _warn_once(f"sage_attention=True has no effect here: {reason}. PyTorch's attention is used.")
        return False


def attend_by_heads(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return `softmax(scale · q kᵀ) v`, one head of all sequences at a time, so that its scores stay in cache.

    Parameters
    ----------
    q, k, v : Tensor
        As for `Attend.forward`.
    scale : float
        Factor on the scores.

    Returns
    -------
    Tensor
        `(b, h, n, e')`, in memory `(b, n, h, e')`, as PyTorch's kernel leaves it.
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _AttendByHeads.apply(q, k, v, scale))  # type: ignore[no-untyped-call]
    return _by_heads(q, k, v, scale)


def _by_heads(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    batch, heads, length, width = *q.shape[:3], v.shape[-1]
    out, head_out = q.new_empty(batch, length, heads, width), q.new_empty(batch, length, width)
    weights = _scores(q, k)
    for head in range(heads):
        _weights_of(q[:, head], k[:, head], scale, weights)
        # Products go faster to a matrix by itself than to every h-th row of the output.
        out[:, :, head] = torch.bmm(weights, v[:, head], out=head_out)
    return rearrange(out, "b n h e -> b h n e")


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Return memory for the scores of one head, `(b, queries, keys)`."""
    return q.new_empty(q.shape[0], q.shape[2], k.shape[2])


def _weights_of(q: Tensor, k: Tensor, scale: float, out: Tensor) -> None:
    torch.baddbmm(out, q, k.mT, beta=0, alpha=scale, out=out)
    torch.softmax(out, -1, out=out)


class _AttendByHeads(torch.autograd.Function):
    """Differentiable `_by_heads`: attention weights are computed again in the backward pass, never stored."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.scale = scale
        ctx.save_for_backward(q, k, v)
        return _by_heads(q, k, v, scale)

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = ctx.saved_tensors
        # Heads first: each head's gradients are matrices by themselves.
        by_head = [t.new_empty(t.shape[1], t.shape[0], *t.shape[2:]) for t in (q, k, v)]
        weights, grad_scores = _scores(q, k), _scores(q, k)
        for head, (grad_q, grad_k, grad_v) in enumerate(zip(*by_head, strict=True)):
            _weights_of(q[:, head], k[:, head], ctx.scale, weights)
            torch.bmm(weights.mT, grad[:, head], out=grad_v)
            torch.bmm(grad[:, head], v[:, head].mT, out=grad_scores)
            torch.ops.aten._softmax_backward_data(grad_scores, weights, -1, weights.dtype, grad_input=grad_scores)
            torch.baddbmm(grad_q, grad_scores, k[:, head], beta=0, alpha=ctx.scale, out=grad_q)
            torch.baddbmm(grad_k, grad_scores.mT, q[:, head], beta=0, alpha=ctx.scale, out=grad_k)
        grad_q, grad_k, grad_v = (rearrange(t, "h b n e -> b h n e") for t in by_head)
        return grad_q, grad_k, grad_v, None
