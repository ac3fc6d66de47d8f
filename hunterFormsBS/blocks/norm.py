"""RMSNorm as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hunterFormsBS.kernels.seam import Layer
from hunterFormsBS.operations.norm import rms_norm


class RMSNorm(Layer):
    """`rms_norm` over `dim` features with a learned gain, the parameter `gamma`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to 1."""
        nn.init.ones_(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(..., d)`."""
        return rms_norm(x, self.gamma)
