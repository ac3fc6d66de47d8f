"""The layer that turns each band of each frame into a token.

A layer sees a band layout as the widths of its bands, in real numbers per frame: bins × audio channels × 2. Bands are
concatenated on the last axis; within a band the order is (f s c).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.kernels.bandGroups import BandGroups, split_by_groups
from hunterFormsBS.kernels.seam import Layer, served_by


class BandSplit(Layer):
    """Map each band of each frame to one token: RMSNorm and Linear, separate for every band.

    Parameters
    ----------
    dim : int
        Features of a token.
    dim_inputs : sequence of int
        Widths of the bands.
    """

    def __init__(self, dim: int, dim_inputs: Sequence[int]) -> None:
        super().__init__()
        self.dim_inputs = tuple(dim_inputs)
        self.to_features = nn.ModuleList(nn.Sequential(RMSNorm(width), nn.Linear(width, dim)) for width in dim_inputs)
        self.groups = BandGroups(dim_inputs)

    @served_by(split_by_groups)
    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, sum of widths)` to `(b, t, band, d)`."""
        bands = torch.split(x, list(self.dim_inputs), dim=-1)
        return torch.stack([net(band) for band, net in zip(bands, self.to_features, strict=True)], dim=-2)
