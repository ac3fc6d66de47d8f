"""What the kernel of an outer layer makes once for those of the layers inside."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from hunterFormsBS.kernels.linear import NOT_PACKED, Packed


class Prepared(NamedTuple):
    """Handed down, as `prepared`, in one call of a transformer, whose kernel found all layers inside unmodified."""

    table: tuple[Tensor, ...] | None = None
    """Of the position embedding, for the length of these sequences."""
    packed: Packed = NOT_PACKED
    """Weights of linear maps in oneDNN's order of memory."""


NOTHING = Prepared()
