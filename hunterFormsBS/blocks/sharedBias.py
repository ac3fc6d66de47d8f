"""One bias of the projections to queries, keys and values, and one of the output projections, for all attention layers.

Every layer holds the same two parameters. Operations that give a module new parameters, such as `to_empty` and loading
with `assign=True`, would give each layer its own: `share` makes them one again.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import nn


class SharedBias(NamedTuple):
    """The two parameters: `qkv`, `(3 · heads · dim_head)`, and `out`, `(dim)`. They start at 0."""

    qkv: nn.Parameter
    out: nn.Parameter

    @classmethod
    def zeros(cls, dim: int, dim_inner: int) -> SharedBias:
        """Make both, for layers with `dim` features in and out and `dim_inner` in all heads."""
        return cls(nn.Parameter(torch.zeros(3 * dim_inner)), nn.Parameter(torch.zeros(dim)))


def share(layers: nn.Module, bias: SharedBias) -> None:
    """Let every softmax attention in `layers` use these parameters."""
    for module in layers.modules():
        if getattr(module, "has_shared_bias", False):
            _give(cast(nn.Module, module.to_qkv), bias.qkv)
            _give(cast(nn.Sequential, module.to_out)[0], bias.out)


def _give(module: nn.Module, bias: nn.Parameter) -> None:
    """Give a linear layer its bias: the module itself, or the one that adapters surround.

    A quantised layer has a copy of the bias among its packed weights, and nothing to share.
    """
    linear = next((each for each in module.modules() if isinstance(each, nn.Linear)), None)
    if linear is not None:
        linear.bias = bias
