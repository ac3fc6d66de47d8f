"""Lists of modules, as the layers that made them know them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def pairs(layers: nn.ModuleList) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Iterate over a list of lists of two modules."""
    for layer in layers:
        pair: Any = layer
        first, second = pair
        yield first, second
