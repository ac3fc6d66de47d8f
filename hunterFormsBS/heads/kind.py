"""The interface of a kind of mask head for the model and the loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hunterFormsBS.kernels.seam import Layer
from hunterFormsBS.variantRow import Variant


def accept(_arguments: Mapping[str, Any]) -> None:
    """Check nothing beyond the rows of the options."""


class HeadKind(NamedTuple):
    """A kind of mask head, which maps tokens `(b, t, band, d)` to masks `(b, t, sum of widths)`."""

    switch: str
    """The argument of the model that selects it if neither 0 nor False. Empty: the default head."""
    build: Callable[[int, Sequence[int], Mapping[str, Any]], Layer]
    """Builds one from `dim`, the widths of the bands, and all arguments of the model."""
    check: Callable[[Mapping[str, Any]], None] = accept
    """Refuses combinations of arguments that do not fit; bounds and needs are in the rows of the options."""
    variants: tuple[Variant, ...] = ()
    """How to recognise it in a state dict, one row per published version."""
