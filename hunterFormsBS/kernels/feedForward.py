"""A feedforward network that stores neither the output of its norm nor that of its activation."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hunterFormsBS.kernels.linear import linear_of
from hunterFormsBS.kernels.prepared import NOTHING, Prepared
from hunterFormsBS.kernels.seam import Served, Where, kernel
from hunterFormsBS.operations.norm import rms_norm


class FeedForward(Served, Protocol):
    """The part of a feedforward network that its kernel uses."""

    net: Any
    """Norm, Linear, GELU, dropout, Linear, dropout."""


@kernel(Where.EAGER)
def feed_forward(layer: FeedForward, x: Tensor, *, prepared: Prepared = NOTHING) -> Tensor | None:
    """Store `x` and the input of GELU; recompute the outputs of norm and GELU in the backward pass."""
    if prepared is NOTHING and not layer.is_unmodified_inside():
        return None
    norm, expand, gelu, first_dropout, contract, last_dropout = layer.net
    if gelu.approximate != "none" or any(one.training and one.p > 0 for one in (first_dropout, last_dropout)):
        return None

    if not torch.is_grad_enabled():
        (hidden,) = linear_of(rms_norm, (x, norm.gamma), (expand,), activation="gelu", packed=prepared.packed)
        (out,) = linear_of(None, (hidden,), (contract,), packed=prepared.packed)
        return out
    (hidden,) = linear_of(rms_norm, (x, norm.gamma), (expand,), packed=prepared.packed)
    (out,) = linear_of(F.gelu, (hidden,), (contract,), packed=prepared.packed)
    return out
