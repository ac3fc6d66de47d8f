"""Residual streams: hyper-connections around every sublayer, by the hyper-connections library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import hyper_connections as library  # type: ignore[import-untyped, unused-ignore]  # it has no annotations
from einops import rearrange, repeat
from torch import Tensor, nn


def has_streams(num_residual_streams: int, num_residual_fracs: int) -> bool:
    """Tell whether sublayers are wrapped at all: one stream in one piece is the ordinary residual connection."""
    return num_residual_streams > 1 or num_residual_fracs > 1


def residual_wrapper(
    dim: int, *, num_residual_streams: int, num_residual_fracs: int, mc_hyper_conn_sinkhorn_iters: int | None
) -> Callable[[nn.Module, int], nn.Module]:
    """Return a function that wraps a sublayer, given its index, so that it reads from and writes to all streams.

    Parameters
    ----------
    dim : int
        Features, a multiple of `num_residual_fracs`.
    num_residual_streams : int
        Copies of the residual stream: hyper-connections [1]_.
    num_residual_fracs : int
        Pieces that the features of each stream are divided into: frac-connections [2]_.
    mc_hyper_conn_sinkhorn_iters : int, optional
        Constrain the mixing of streams to (nearly) doubly stochastic matrices with that many Sinkhorn iterations [3]_.
        None: no constraint.

    References
    ----------
    .. [1] Zhu et al., Hyper-Connections, 2024, arXiv 2409.19606.
    .. [2] Zhu et al., Frac-Connections, 2025, arXiv 2503.14125.
    .. [3] Xie et al., mHC: Manifold-Constrained Hyper-Connections, 2025, arXiv 2512.24880.
    """
    kind = cast(Any, library.HyperConnections)
    keywords: dict[str, Any] = {"dim": dim, "num_fracs": num_residual_fracs}
    if mc_hyper_conn_sinkhorn_iters is not None:
        kind = cast(Any, library.ManifoldConstrainedHyperConnections)
        keywords["sinkhorn_iters"] = mc_hyper_conn_sinkhorn_iters

    def wrap(sublayer: nn.Module, index: int) -> nn.Module:
        # The index picks the stream that the sublayer reads at first; the library would draw it at random.
        return cast(nn.Module, kind(num_residual_streams, branch=sublayer, layer_index=index, **keywords))

    return wrap


def expand_streams(x: Tensor, num_residual_streams: int) -> Tensor:
    """Copy `(b, ...)` to `(b · streams, ...)`, the streams of an item side by side."""
    return repeat(x, "b ... -> (b s) ...", s=num_residual_streams) if num_residual_streams > 1 else x


def reduce_streams(x: Tensor, num_residual_streams: int) -> Tensor:
    """Sum the streams of `(b · streams, ...)`: `(b, ...)`."""
    return rearrange(x, "(b s) ... -> b s ...", s=num_residual_streams).sum(1) if num_residual_streams > 1 else x
