"""Residual streams: hyper-connections around every sublayer, by the hyper-connections library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import hyper_connections as library  # type: ignore[import-untyped, unused-ignore]  # it has no annotations
import torch
from einops import rearrange, repeat
from einops.layers.torch import Rearrange
from hyper_connections import hyper_connections, manifold_constrained_hyper_connections
from torch import Tensor, nn

from hunterFormsBS.kernels.seam import know
from hunterFormsBS.theTypes import ParametersResidual

know(
    library.HyperConnections,
    library.ManifoldConstrainedHyperConnections,
    hyper_connections.RMSNorm,
    manifold_constrained_hyper_connections.RMSNorm,
    Rearrange,
)


def has_streams(parameters: ParametersResidual) -> bool:
    """Tell whether sublayers are wrapped: one stream and one fraction is the ordinary residual connection."""
    return parameters.num_residual_streams > 1 or parameters.num_residual_fracs > 1


def residual_wrapper(dim: int, parameters: ParametersResidual) -> Callable[[nn.Module, int], nn.Module]:
    """Return a function that wraps a sublayer, given its index, so that it reads from and writes to all streams.

    Parameters
    ----------
    dim : int
        Features, a multiple of `num_residual_fracs`.
    parameters : ParametersResidual
        `num_residual_streams`: copies of the residual stream, hyper-connections [1]_. `num_residual_fracs`: fractions
        that the features of each stream are divided into, frac-connections [2]_. `mc_hyper_conn_sinkhorn_iters`:
        constrain the mixing of streams to (nearly) doubly stochastic matrices with that many Sinkhorn iterations [3]_;
        None: no constraint. Without streams a sublayer is not wrapped.

    References
    ----------
    .. [1] Zhu et al., Hyper-Connections, 2024, arXiv 2409.19606.
    .. [2] Zhu et al., Frac-Connections, 2025, arXiv 2503.14125.
    .. [3] Xie et al., mHC: Manifold-Constrained Hyper-Connections, 2025, arXiv 2512.24880.
    """
    if not has_streams(parameters):
        return lambda sublayer, index: sublayer  # noqa: ARG005
    kind = cast(Any, library.HyperConnections)
    keywords: dict[str, Any] = {"dim": dim, "num_fracs": parameters.num_residual_fracs}
    if parameters.mc_hyper_conn_sinkhorn_iters is not None:
        kind = cast(Any, library.ManifoldConstrainedHyperConnections)
        keywords["sinkhorn_iters"] = parameters.mc_hyper_conn_sinkhorn_iters

    def wrap(sublayer: nn.Module, index: int) -> nn.Module:
        # The index selects the stream that the sublayer reads initially; the library would choose at random.
        return cast(nn.Module, kind(parameters.num_residual_streams, branch=sublayer, layer_index=index, **keywords))

    return wrap


def reset_connection(wrapped: nn.Module, dim: int, parameters: ParametersResidual, index: int) -> None:
    """Initialise the parameters of a wrapper, not those of its sublayer."""
    fresh = dict(residual_wrapper(dim, parameters)(nn.Identity(), index).named_parameters())
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if name in fresh:
                parameter.copy_(fresh[name])


def expand_streams(x: Tensor, num_residual_streams: int) -> Tensor:
    """Copy `(b, ...)` to `(b · streams, ...)`, the streams of an item side by side."""
    return repeat(x, "b ... -> (b s) ...", s=num_residual_streams) if num_residual_streams > 1 else x


def reduce_streams(x: Tensor, num_residual_streams: int) -> Tensor:
    """Sum the streams of `(b · streams, ...)`: `(b, ...)`."""
    return rearrange(x, "(b s) ... -> b s ...", s=num_residual_streams).sum(1) if num_residual_streams > 1 else x
