"""The feedforward half of a transformer layer."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hunterFormsBS.blocks.norm import RMSNorm, rms_norm
from hunterFormsBS.kernels.linear import can_bypass, linear, linear_of


class FeedForward(nn.Module):
    """RMSNorm, Linear, GELU [1]_, Linear, with a dropout after the activation and after the second Linear.

    Parameters
    ----------
    dim : int
        Features in and out.
    ff_mult : int
        The hidden layer has `dim * ff_mult` features.
    ff_dropout : float
        Dropout probability.

    References
    ----------
    .. [1] Hendrycks & Gimpel, Gaussian Error Linear Units, 2016, arXiv 1606.08415.
    """

    def __init__(self, dim: int, *, ff_mult: int = 4, ff_dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            RMSNorm(dim),
            nn.Linear(dim, dim * ff_mult),
            nn.GELU(),
            nn.Dropout(ff_dropout),
            nn.Linear(dim * ff_mult, dim),
            nn.Dropout(ff_dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., d)` to `(..., d)`."""
        kinds = (RMSNorm, nn.Linear, nn.GELU, nn.Dropout, nn.Linear, nn.Dropout)
        layers = tuple(self.net)
        if (
            len(layers) != len(kinds)
            or not can_bypass((self.net, nn.Sequential), *zip(layers, kinds, strict=True))
            or any(dropout.training and dropout.p > 0 for dropout in cast("tuple[nn.Dropout, ...]", layers[3::2]))
        ):
            return cast(Tensor, self.net(x))
        gamma = cast(RMSNorm, layers[0]).gamma
        expand, contract = cast("tuple[nn.Linear, nn.Linear]", layers[1::3])
        if not torch.is_grad_enabled():
            hidden = linear(rms_norm(x, gamma), expand.weight, expand.bias, activation="gelu")
            return linear(hidden, contract.weight, contract.bias)
        # Stores x and what enters GELU; norm and GELU outputs, four times dim more, are recomputed.
        (hidden,) = linear_of(rms_norm, (x, gamma), (expand,))
        (out,) = linear_of(F.gelu, (hidden,), (contract,))
        return out
