"""What the model and the loader know of a kind of mask head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hunterFormsBS.kernels.seam import Layer
from hunterFormsBS.variantRow import Variant


def accept(_arguments: Mapping[str, Any]) -> None:
    """Refuse nothing more than the rows of the options do."""


class HeadKind(NamedTuple):
    """A kind of mask head, which maps tokens `(b, t, band, d)` to masks `(b, t, sum of widths)`."""

    switch: str
    """The argument of the model that asks for it, where it is neither 0 nor False. Empty: the head without a switch."""
    build: Callable[[int, Sequence[int], Mapping[str, Any]], Layer]
    """Makes one, of `dim`, the widths of the bands, and all arguments of the model."""
    check: Callable[[Mapping[str, Any]], None] = accept
    """Refuses arguments that fit neither each other nor the head; bounds and needs stand in the rows of the options."""
    variants: tuple[Variant, ...] = ()
    """How it shows in a state dict, one row for each published version."""
