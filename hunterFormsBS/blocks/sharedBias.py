"""Two biases that all attention layers share: of queries, keys and values, and of the output projections.

Every layer holds the same two parameters. Operations that replace parameters, such as `to_empty` and loading with
`assign=True`, give each layer its own; `share` undoes that.
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
        """Make both, for layers with `dim` features and `dim_inner` features in all heads."""
        return cls(nn.Parameter(torch.zeros(3 * dim_inner)), nn.Parameter(torch.zeros(dim)))


def share(layers: nn.Module, bias: SharedBias) -> None:
    """Let every softmax attention in `layers` use these parameters."""
    for module in layers.modules():
        if getattr(module, "has_shared_bias", False):
            _give(cast(nn.Module, module.to_qkv), bias.qkv)
            _give(cast(nn.Sequential, module.to_out)[0], bias.out)


def _give(module: nn.Module, bias: nn.Parameter) -> None:
    """Set the bias of a linear layer, which adapters may wrap.

    A quantised layer keeps a copy of the bias in its packed weights: nothing can be shared.
    """
    linear = next((each for each in module.modules() if isinstance(each, nn.Linear)), None)
    if linear is not None:
        linear.bias = bias
