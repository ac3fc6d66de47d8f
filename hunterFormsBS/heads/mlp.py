"""The mask head of BS-RoFormer and Mel-Band RoFormer: an MLP and a gated linear unit for each band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor, nn

from hunterFormsBS.heads.kind import HeadKind
from hunterFormsBS.kernels.bandGroups import (
    BandGroups,
    mask_by_bands,
    mask_by_groups,
    masks_by_bands,
    masks_by_groups,
)
from hunterFormsBS.kernels.recompute import checkpointed
from hunterFormsBS.kernels.seam import Layer, served_by
from hunterFormsBS.optionRow import Needs, Option, none_of, taken_by

_MLPS = Needs("mask_fno_modes=0", ("mask_fno_modes",), none_of)


class OptionsMLP(TypedDict, total=False):
    """Arguments of the model for this head."""

    mask_estimator_depth: Annotated[int | None, Option(default=None, most=64, unset=1, needs=_MLPS)]
    mlp_expansion_factor: Annotated[int, Option(default=4, least=1, most=1024, needs=_MLPS)]


def MLP(dim_in: int, dim_out: int, *, dim_hidden: int, depth: int = 1) -> nn.Sequential:
    """Return `depth` hidden layers of `dim_hidden` features with tanh, then one Linear."""
    dims = (dim_in, *(dim_hidden,) * depth)
    hidden = [layer for pair in pairwise(dims) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(dims[-1], dim_out))


class MaskEstimator(Layer):
    """Map each token to the complex mask of its band: an MLP and a gated linear unit [1]_, separate for every band.

    Bands are concatenated on the last axis of the output; within a band the order is (f s c).

    Parameters
    ----------
    dim : int
        Features of a token.
    dim_inputs : sequence of int
        Widths of the bands, in real numbers per frame: bins × audio channels × 2.
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
        masks = [net(band) for band, net in zip(x.unbind(-2), self.to_freqs, strict=True)]
        return torch.cat(masks, dim=-1)


@served_by(masks_by_groups, masks_by_bands)
def masks_of_stems(estimators: Sequence[nn.Module], x: Tensor, use_torch_checkpoint: bool = False) -> Tensor:
    """Apply the mask estimators of several stems: `(b, t, band, d)` to `(b, n, t, sum of widths)`."""
    return torch.stack([checkpointed(one)(x) if use_torch_checkpoint else one(x) for one in estimators], dim=1)


def build(dim: int, dim_inputs: Sequence[int], arguments: Mapping[str, Any]) -> MaskEstimator:
    """Return the head that the model's arguments describe."""
    return MaskEstimator(dim, dim_inputs, **taken_by(OptionsMLP, arguments))


MLPS = HeadKind("", build)
