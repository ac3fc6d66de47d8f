"""Data that the kernel of an outer layer prepares for the kernels of inner layers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from hunterFormsBS.kernels.linear import NOT_PACKED, Packed


class Prepared(NamedTuple):
    """Passed as `prepared` in one call of a transformer, whose kernel found all inner layers unmodified."""

    table: tuple[Tensor, ...] | None = None
    """Table of the position embedding, for the length of these sequences."""
    packed: Packed = NOT_PACKED
    """Weights of linear maps in oneDNN's memory layout."""


NOTHING = Prepared()
