"""The layers that work band by band.

A band layout enters as the widths of its bands, in real numbers per frame: bins × audio channels × 2. What
`BandSplit` reads and `MaskEstimator` writes holds the bands one after another on the last axis, and within a
band the order is (f s c).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from hunterFormsBS.blocks.layout import DEFAULT_FREQS_PER_BANDS as DEFAULT_FREQS_PER_BANDS
from hunterFormsBS.blocks.layout import mask_filter_bank_bs_roformer_default as mask_filter_bank_bs_roformer_default
from hunterFormsBS.blocks.layout import mask_filter_bank_mel as mask_filter_bank_mel
from hunterFormsBS.blocks.layout import mask_filter_bank_mel_band_default as mask_filter_bank_mel_band_default
from hunterFormsBS.blocks.layout import mask_filter_bank_non_overlapping as mask_filter_bank_non_overlapping
from hunterFormsBS.blocks.loss import lossComputation as lossComputation
from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.blocks.recompute import checkpointed
from hunterFormsBS.kernels.bandGroups import (
    BandGroups,
    mask_by_bands,
    mask_by_groups,
    masks_by_bands,
    masks_by_groups,
    split_by_groups,
)
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


def MLP(dim_in: int, dim_out: int, *, dim_hidden: int, depth: int = 1) -> nn.Sequential:
    """Return `depth` hidden layers of `dim_hidden` features with tanh, then one Linear."""
    dims = (dim_in, *(dim_hidden,) * depth)
    hidden = [layer for pair in pairwise(dims) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(dims[-1], dim_out))


class MaskEstimator(Layer):
    """Map each token to the complex mask of its band: an MLP and a gated linear unit [1]_, separate for every band.

    Parameters
    ----------
    dim : int
        Features of a token.
    dim_inputs : sequence of int
        Widths of the bands.
    mask_estimator_depth : int
        Hidden layers.
    mlp_expansion_factor : int
        A hidden layer has `dim * mlp_expansion_factor` features.

    References
    ----------
    .. [1] Dauphin et al., Language Modeling with Gated Convolutional Networks, ICML 2017, arXiv 1612.08083.
    """

    def __init__(
        self, dim: int, dim_inputs: Sequence[int], *, mask_estimator_depth: int = 1, mlp_expansion_factor: int = 4
    ) -> None:
        super().__init__()
        self.dim_inputs = tuple(dim_inputs)
        dim_hidden = dim * mlp_expansion_factor
        self.to_freqs = nn.ModuleList(
            nn.Sequential(MLP(dim, 2 * width, dim_hidden=dim_hidden, depth=mask_estimator_depth), nn.GLU(dim=-1))
            for width in dim_inputs
        )
        self.groups = BandGroups(dim_inputs)

    @served_by(mask_by_groups, mask_by_bands)
    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, band, d)` to `(b, t, sum of widths)`."""
        masks = [net(band) for band, net in zip(x.unbind(-2), cast("Iterable[nn.Module]", self.to_freqs), strict=True)]
        return torch.cat(masks, dim=-1)


@served_by(masks_by_groups, masks_by_bands)
def masks_of_stems(estimators: Sequence[nn.Module], x: Tensor, use_torch_checkpoint: bool = False) -> Tensor:
    """Apply the mask estimators of several stems: `(b, t, band, d)` to `(b, n, t, sum of widths)`."""
    return torch.stack([checkpointed(one)(x) if use_torch_checkpoint else one(x) for one in estimators], dim=1)
