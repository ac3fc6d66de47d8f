"""Bands of similar width, padded to the same width, so that they share one matrix product.

With one product per band, a GPU would spend its time on launches, and a compiler on compilation. The number of groups
grows with the logarithm of the ratio between the widest and the narrowest band, not with the number of bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from hunterFormsBS.kernels.constants import Constants
from hunterFormsBS.kernels.linear import linear_of
from hunterFormsBS.kernels.recompute import checkpointed
from hunterFormsBS.kernels.seam import Served, Where, are_served_alike, kernel
from hunterFormsBS.operations.norm import at_least_float32, rms_norm


class BandSplit(Served, Protocol):
    """The part of a band split that its kernel uses."""

    to_features: Any
    """For each band, norm and Linear."""
    groups: BandGroups


class MaskHead(Served, Protocol):
    """The part of a mask head, with an MLP and a gated linear unit per band, that its kernels use."""

    to_freqs: Any
    """For each band, MLP and GLU; an MLP alternates Linear and tanh, and ends with a Linear."""
    groups: BandGroups


class Group(NamedTuple):
    """A group's bands, as indices into `BandGroups.bands`, and its columns among those of all padded bands."""

    bands: slice
    width: int
    columns: slice


class BandGroups:
    """Indices that pad bands to the width of the widest in their group, and back.

    The widest band of a group is at most twice as wide as the narrowest.

    Parameters
    ----------
    dim_inputs : sequence of int
        Widths of the bands.

    Attributes
    ----------
    groups : list of Group
        Widest bands first.
    bands : list of int
        The bands, group by group.
    indices : Constants
        `order` and `rank`, `(band)`: the same as `bands`, and the inverse permutation. `columns`, `(padded)`: of every
        padded band, group by group, the columns in the input, and one after its last as padding. `offsets`,
        `(sum of widths)`: where in `columns` each column of the input is. `widths` and `padded_widths`, `(padded)`:
        how wide the band of that column is, without and with padding. `gated_rows`, `(2 · padded)`: as
        `columns`, for layers with two outputs for each column of a band, one half of them after the other;
        padding is any row.
    """

    def __init__(self, dim_inputs: Sequence[int]) -> None:
        total = sum(dim_inputs)
        starts = [0, *accumulate(dim_inputs)]
        self.groups: list[Group] = []
        self.bands: list[int] = []
        columns: list[int] = []
        widths: list[int] = []
        padded_widths: list[int] = []
        gated_rows: list[int] = []
        for bands in _alike(dim_inputs):
            width = dim_inputs[bands[0]]
            first_band, first_column = len(self.bands), len(columns)
            size = width * len(bands)
            self.groups.append(
                Group(slice(first_band, first_band + len(bands)), width, slice(first_column, first_column + size))
            )
            self.bands += bands
            padded_widths += [width] * size
            for band in bands:
                start, own = starts[band], dim_inputs[band]
                padding = width - own
                columns += [*range(start, start + own), *[total] * padding]
                widths += [own] * width
                for first in (2 * start, 2 * start + own):
                    gated_rows += [*range(first, first + own), *[0] * padding]
        self.indices = Constants(
            order=self.bands,
            rank=_inverse(self.bands),
            columns=columns,
            offsets=_inverse(columns)[:total],
            widths=widths,
            padded_widths=padded_widths,
            gated_rows=gated_rows,
        )


def _inverse(order: Sequence[int]) -> list[int]:
    """Return the indices of the smallest, the second smallest, … number."""
    return sorted(range(len(order)), key=order.__getitem__)


def _alike(dim_inputs: Sequence[int]) -> list[list[int]]:
    """Return the bands in groups, each with the widest first."""
    groups: list[list[int]] = []
    for band in sorted(range(len(dim_inputs)), key=lambda band: -dim_inputs[band]):
        if groups and 2 * dim_inputs[band] >= dim_inputs[groups[-1][0]]:
            groups[-1].append(band)
        else:
            groups.append([band])
    return groups


@kernel(Where.DEVICE | Where.GRAPH, ordinary=True)
def split_by_groups(band_split: BandSplit, x: Tensor) -> Tensor | None:
    """Make tokens with one product per group of bands instead of one per band."""
    if not band_split.is_unmodified_inside():
        return None
    norms, linears = zip(*band_split.to_features, strict=True)
    groups = band_split.groups
    columns, widths, padded_widths, rank = (
        groups.indices.on(x.device, name) for name in ("columns", "widths", "padded_widths", "rank")
    )
    # Padding is zero in all factors, so it adds nothing.
    frames = F.pad(rearrange(x, "b t w -> (b t) w"), (0, 1)).index_select(-1, columns)
    gamma = F.pad(torch.cat([norm.gamma for norm in norms]), (0, 1)).index_select(0, columns)
    weight = F.pad(torch.cat([linear.weight for linear in linears], dim=-1), (0, 1)).index_select(-1, columns)
    bias = torch.stack([linears[band].bias for band in groups.bands])[:, None]
    # But it would count in a mean.
    gamma = gamma * (widths.to(at_least_float32(gamma.dtype)) / padded_widths).sqrt().to(gamma.dtype)
    tokens: list[Tensor] = []
    for group in groups.groups:
        bands, gains, factor = (
            rearrange(t[..., group.columns], "r (f w) -> f r w", w=group.width) for t in (frames, gamma[None], weight)
        )
        normed = rms_norm(bands, gains).to(weight.dtype)
        tokens.append(torch.baddbmm(bias[group.bands], normed, factor.mT))
    return rearrange(torch.cat(tokens).index_select(0, rank), "f (b t) d -> b t f d", b=x.shape[0])


@kernel(Where.DEVICE | Where.GRAPH, ordinary=True)
def masks_by_groups(estimators: Sequence[MaskHead], x: Tensor, use_torch_checkpoint: bool = False) -> Tensor | None:
    """Estimate masks with one product per group, for all its bands and all stems."""
    if not are_served_alike(mask_by_groups, estimators):
        return None
    run = partial(_masks_by_groups, estimators)
    return (checkpointed(run) if use_torch_checkpoint else run)(x)


def _masks_by_groups(estimators: Sequence[MaskHead], x: Tensor) -> Tensor:
    stems = len(estimators)
    groups = estimators[0].groups
    order, gated_rows, offsets = (groups.indices.on(x.device, name) for name in ("order", "gated_rows", "offsets"))
    # mlps[stem][band][layer]
    mlps = [[list(net[0]) for net in estimator.to_freqs] for estimator in estimators]
    hidden = repeat(x.index_select(-2, order), "b t f d -> (f n) (b t) d", n=stems)
    for layer in range(0, len(mlps[0][0]) - 1, 2):
        linears = [mlp[band][layer] for band in groups.bands for mlp in mlps]
        weight, bias = (torch.stack([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
        hidden = torch.baddbmm(bias[:, None], hidden, weight.mT).tanh()

    linears = [mlp[-1] for stem in mlps for mlp in stem]
    weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
    first_rows = weight.shape[0] // stems * torch.arange(stems, device=x.device)[:, None]
    masks: list[Tensor] = []
    for group in groups.groups:
        width = 2 * group.width
        rows = gated_rows[2 * group.columns.start : 2 * group.columns.stop]
        rows = (rearrange(rows, "(f w) -> f 1 w", w=width) + first_rows).flatten()
        factor = rearrange(weight.index_select(0, rows), "(f w) d -> f d w", w=width)
        summand = rearrange(bias.index_select(0, rows), "(f w) -> f 1 w", w=width)
        bands = hidden[stems * group.bands.start : stems * group.bands.stop]
        mask = F.glu(torch.baddbmm(summand, bands, factor), dim=-1)
        masks.append(rearrange(mask, "(f n) (b t) w -> b n t (f w)", n=stems, b=x.shape[0]))
    return torch.cat(masks, dim=-1).index_select(-1, offsets)


@kernel(Where.DEVICE | Where.GRAPH, ordinary=True)
def mask_by_groups(estimator: MaskHead, x: Tensor) -> Tensor | None:
    """As `masks_by_groups`, for a single mask estimator."""
    return _masks_by_groups([estimator], x)[:, 0] if estimator.is_unmodified_inside() else None


@kernel(Where.CPU)
def mask_by_bands(estimator: MaskHead, x: Tensor) -> Tensor | None:
    """As `masks_by_bands`, for a single mask estimator."""
    return _masks_by_bands([estimator], x)[:, 0] if estimator.is_unmodified_inside() else None


@kernel(Where.CPU)
def masks_by_bands(estimators: Sequence[MaskHead], x: Tensor, use_torch_checkpoint: bool = False) -> Tensor | None:
    """Estimate masks band by band with faster linear maps; each band is copied from the tokens once for all stems."""
    if use_torch_checkpoint and len(estimators) > 1:  # Recomputing one stem at a time takes less memory.
        return None
    if not are_served_alike(mask_by_bands, estimators):
        return None
    run = partial(_masks_by_bands, estimators)
    return (checkpointed(run) if use_torch_checkpoint else run)(x)


def _masks_by_bands(estimators: Sequence[MaskHead], x: Tensor) -> Tensor:
    # Once for all stems: otherwise each linear map, and each gradient, would copy the band itself.
    bands = map(Tensor.contiguous, x.unbind(-2))
    nets_of_bands = zip(*(estimator.to_freqs for estimator in estimators), strict=True)
    by_band = [[_mask(net, band) for net in nets] for band, nets in zip(bands, nets_of_bands, strict=True)]
    masks = torch.cat(list(chain.from_iterable(zip(*by_band, strict=True))), dim=-1)
    return rearrange(masks, "b t (n w) -> b n t w", n=len(estimators))


def _mask(net: Any, band: Tensor) -> Tensor:
    """Return the mask, `(b, t, w)`, that one band's MLP and GLU make of its tokens, `(b, t, d)`."""
    mlp, glu = net
    *hidden_layers, last = mlp[::2]
    for layer in hidden_layers:
        (band,) = linear_of(None, (band,), (layer,), activation="tanh")
    return glu(*linear_of(None, (band,), (last,)))
