"""Lists of modules: typed, with a short `repr`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from torch import nn

_NUMBER = re.compile(r"\d+")
_SHORT = 60
"""Longest one-line `repr` of a module, in characters, that is shown next to its name."""

_USUAL = (nn.Module.__repr__, nn.ModuleList.__repr__)


def nested(layers: Iterable[nn.Module]) -> Iterator[nn.ModuleList]:
    """Iterate over nested lists of modules, for example pairs of sublayers or the layers of a group."""
    for layer in layers:
        inner: Any = layer
        yield inner


def folded_repr(module: nn.Module) -> str:
    """Return the `repr` of a module, showing neighbours in a list once if they differ only in numbers.

    Numbers that differ are shown as ranges: `(0-2): 3 x Linear(in_features=4..24, out_features=8, bias=True)`. Inner
    modules whose class defines a `repr` are shown by it.
    """
    named: Iterable[tuple[str, nn.Module]] = module.named_children()
    children = [(name, folded_repr(child) if type(child).__repr__ in _USUAL else repr(child)) for name, child in named]
    if isinstance(module, nn.ModuleList | nn.Sequential):
        children = [_shown_once(list(group)) for _, group in groupby(children, lambda one: _NUMBER.sub("#", one[1]))]
    about, name = module.extra_repr(), type(module).__name__
    if not children:
        return f"{name}({about})"
    lines = [*about.splitlines(), *(f"({key}): {text}" for key, text in children)]
    if len(lines) == 1 and len(lines[0]) <= _SHORT and "\n" not in lines[0]:
        return f"{name}({lines[0]})"
    indented = "\n".join(lines).replace("\n", "\n  ")
    return f"{name}(\n  {indented}\n)"


def _shown_once(children: list[tuple[str, str]]) -> tuple[str, str]:
    """Return one name and one text for neighbours whose texts differ only in numbers."""
    (first, text), (last, _) = children[0], children[-1]
    if len(children) == 1:
        return first, text
    columns = iter(list(zip(*(map(int, _NUMBER.findall(one)) for _, one in children), strict=True)))

    def spread(_match: re.Match[str]) -> str:
        values = next(columns)
        return str(values[0]) if min(values) == max(values) else f"{min(values)}..{max(values)}"

    return f"{first}-{last}", f"{len(children)} x {_NUMBER.sub(spread, text)}"
