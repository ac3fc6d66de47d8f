"""Softmax attention written out."""

from __future__ import annotations

from torch import Tensor

from hunterFormsBS.operations.norm import at_least_float32


def attention_weights(q: Tensor, k: Tensor, scale: float, seen: Tensor | None = None) -> Tensor:
    """Return the weight of every key for every query, `softmax(scale · q kᵀ)`, in float32 or better.

    Parameters
    ----------
    q, k : Tensor
        `(..., n, e)`.
    scale : float
        Factor on the scores.
    seen : Tensor, default None
        Boolean `(queries, keys)`: the keys that each query attends to; None: all.

    Returns
    -------
    Tensor
        `(..., queries, keys)`.
    """
    scores = q @ k.mT * scale
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1, dtype=at_least_float32(scores.dtype))
