"""Lists of lists of modules, typed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


def nested(layers: Iterable[nn.Module]) -> Iterator[nn.ModuleList]:
    """Iterate over modules that are lists themselves, for example pairs of sublayers or the layers of a group."""
    for layer in layers:
        inner: Any = layer
        yield inner
