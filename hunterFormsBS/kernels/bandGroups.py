"""Bands of like width, padded to one width, so that they can share one matrix product.

A launch per band is what a GPU, and a compiler, would spend their time with. The number of groups grows with the
logarithm of the ratio between the widest and the narrowest band, not with the number of bands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hunterFormsBS.kernels.seam import device_of_constants


class Group(NamedTuple):
    """A group's bands, as positions in `BandGroups.bands`, and its columns, among those of all padded bands."""

    bands: slice
    width: int
    columns: slice


class BandGroups(nn.Module):
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
    order, rank : Tensor
        `(band)`: the same, and the inverse permutation.
    columns : Tensor
        `(padded)`: of every padded band, group by group, the columns in the input, and one after its last as padding.
    places : Tensor
        `(sum of widths)`: where in `columns` each column of the input is.
    widths, padded_widths : Tensor
        `(padded)`: how wide the band of that column is, without and with padding.
    gated_rows : Tensor
        `(2 · padded)`: as `columns`, for layers with two outputs for each column of a band, one half of them after the
        other. Padding is any row.
    """

    order: Tensor
    rank: Tensor
    columns: Tensor
    places: Tensor
    widths: Tensor
    padded_widths: Tensor
    gated_rows: Tensor

    def __init__(self, dim_inputs: Sequence[int]) -> None:
        super().__init__()
        self.dim_inputs = tuple(dim_inputs)
        self.groups: list[Group] = []
        self.bands: list[int] = []
        self._register_indices(device_of_constants())

    def _register_indices(self, device: torch.device) -> None:
        total = sum(self.dim_inputs)
        starts = [0, *accumulate(self.dim_inputs)]
        self.groups = []
        names = ("order", "columns", "widths", "padded_widths", "gated_rows")
        index: dict[str, list[int]] = {name: [] for name in names}
        for bands in _alike(self.dim_inputs):
            width = self.dim_inputs[bands[0]]
            first_band, first_column = len(index["order"]), len(index["columns"])
            size = width * len(bands)
            self.groups.append(
                Group(slice(first_band, first_band + len(bands)), width, slice(first_column, first_column + size))
            )
            index["order"] += bands
            index["padded_widths"] += [width] * size
            for band in bands:
                start, own = starts[band], self.dim_inputs[band]
                padding = width - own
                index["columns"] += [*range(start, start + own), *[total] * padding]
                index["widths"] += [own] * width
                for first in (2 * start, 2 * start + own):
                    index["gated_rows"] += [*range(first, first + own), *[0] * padding]
        tensors = {name: torch.tensor(numbers, device=device) for name, numbers in index.items()}
        self.bands = index["order"]
        tensors["rank"] = tensors["order"].argsort()
        tensors["places"] = tensors["columns"].argsort()[:total]
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._register_indices(self.order.device)  # `to_empty` leaves buffers without content
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # pyright: ignore[reportUnknownMemberType]


def _alike(dim_inputs: Sequence[int]) -> list[list[int]]:
    """Return the bands in groups, the widest first in its group."""
    groups: list[list[int]] = []
    for band in sorted(range(len(dim_inputs)), key=lambda band: -dim_inputs[band]):
        if groups and 2 * dim_inputs[band] >= dim_inputs[groups[-1][0]]:
            groups[-1].append(band)
        else:
            groups.append([band])
    return groups
