"""Attention that stores neither its normed input nor its gated heads, and rotates queries and keys in place."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from hunterFormsBS.kernels.linear import linear_of
from hunterFormsBS.kernels.prepared import NOTHING, Prepared
from hunterFormsBS.kernels.rotation import rotate_in_place
from hunterFormsBS.kernels.seam import Served, Where, kernel
from hunterFormsBS.operations.norm import rms_norm
from hunterFormsBS.operations.valueResidual import mix_values
from hunterFormsBS.theTypes import ValueResidualMix


class Positions(Protocol):
    """The part of a position embedding that kernels use."""

    turns_pairs: bool
    """Its table is one tensor of unit vectors, by which it rotates neighbouring features."""

    def table(self, length: int) -> tuple[Tensor, ...]:
        """Return what depends only on the length."""
        ...

    def embed(self, q: Tensor, k: Tensor, table: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Embed positions in queries and keys."""
        ...


class Attention(Served, Protocol):
    """The part of an attention layer that its kernel uses."""

    heads: int
    value_residual_mix: ValueResidualMix | None
    norm: Any
    to_qkv: Any
    to_gates: Any
    to_value_residual_mix: Any
    attend: Any
    to_out: Any
    """Linear and dropout."""

    @property
    def positions(self) -> Positions | None:
        """The position embedding."""
        ...


@kernel(Where.EAGER)
def attention(
    layer: Attention, x: Tensor, first_values: Tensor | None = None, *, prepared: Prepared = NOTHING
) -> tuple[Tensor, Tensor] | None:
    """Attend; the normed input and the gated heads are recomputed in the backward pass."""
    if prepared is NOTHING and not layer.is_unmodified_inside():
        return None
    maps = [layer.to_qkv, layer.to_gates]
    if layer.to_value_residual_mix is not None:
        maps.append(layer.to_value_residual_mix)
    project, dropout = layer.to_out
    qkv, gates, *mix = linear_of(rms_norm, (x, layer.norm.gamma), maps, packed=prepared.packed)
    with _scores_in_float32(qkv) as scores_in_float32:
        q, k, values = _with_positions(layer, qkv, prepared, scores_in_float32=scores_in_float32)
        v = mix_values(values, first_values, mix[0] if mix else None, layer.value_residual_mix)
        out = rearrange(layer.attend(q, k, v), "b h n e -> b n h e")
    (merged,) = linear_of(gated_heads, (out, gates), (project,), packed=prepared.packed)
    return dropout(merged), values


def gated_heads(out: Tensor, gates: Tensor) -> Tensor:
    """Return `(b, n, h · e)`: heads, `(b, n, h, e)`, each scaled by the sigmoid of its gate, `(b, n, h)`."""
    return (out * gates.sigmoid()[..., None]).flatten(-2).to(gates.dtype)


@contextmanager
def _scores_in_float32(qkv: Tensor) -> Generator[bool]:
    """Decide whether bfloat16 queries and keys become float32, and keep autocast from undoing it.

    A CPU computes scores and their softmax in float32 faster and more accurately than PyTorch's attention in bfloat16.
    In training, float32 copies would have to be stored.
    """
    if qkv.dtype != torch.bfloat16 or qkv.device.type != "cpu" or torch.is_grad_enabled():
        yield False
    else:
        with torch.autocast("cpu", enabled=False):
            yield True


def _with_positions(
    layer: Attention, qkv: Tensor, prepared: Prepared, *, scores_in_float32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, `(b, h, n, e)`, with positions embedded in the first two."""
    qkv = rearrange(qkv, "b n (three h e) -> b n three h e", three=3, h=layer.heads)
    v = rearrange(qkv[:, :, 2], "b n h e -> b h n e")
    qk = qkv[:, :, :2].float() if scores_in_float32 else qkv
    positions = layer.positions
    table = None
    if positions is not None:
        table = positions.table(qkv.shape[1]) if prepared.table is None else prepared.table
        if positions.turns_pairs and qk.dtype == table[0].dtype and not table[0].requires_grad:
            q, k, *rest = rotate_in_place(qk, table[0])
            return q, k, rest[0] if rest else v
    q, k = rearrange(qk[:, :, :2], "b n two h e -> two b h n e").unbind(0)
    if positions is not None and table is not None:
        q, k = positions.embed(q, k, table)
    return q, k, v
