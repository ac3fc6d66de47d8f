"""What the model and the loader know of a kind of mask head."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from hunterFormsBS.kernels.seam import Layer

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The keys of a state dict, named as in this package, and the shapes of its tensors."""


def accept(_arguments: Mapping[str, Any]) -> None:
    """Refuse nothing more than the rows of the options do."""


def infer_nothing(_shapes: Shapes) -> dict[str, object]:
    """Return nothing: what shapes tell of this head is found for all heads alike."""
    return {}


class HeadKind(NamedTuple):
    """A kind of mask head, which maps tokens `(b, t, band, d)` to masks `(b, t, sum of widths)`."""

    switch: str
    """The argument of the model that asks for it, where it is neither 0 nor False. Empty: the head without a switch."""
    build: Callable[[int, Sequence[int], Mapping[str, Any]], Layer]
    """Makes one, of `dim`, the widths of the bands, and all arguments of the model."""
    check: Callable[[Mapping[str, Any]], None] = accept
    """Refuses arguments that fit neither each other nor the head; bounds and needs stand in the rows of the options."""
    infer: Callable[[Shapes], dict[str, object]] = infer_nothing
    """Returns the arguments that the shapes of a state dict determine; none if it has another head. A `KeyError` or an
    `IndexError` names what is missing."""


def counted(pattern: str, shapes: Shapes) -> int:
    """Return how many different numbers the group of a pattern finds at the beginning of keys."""
    return len({match[1] for key in shapes if (match := re.match(pattern, key))})
