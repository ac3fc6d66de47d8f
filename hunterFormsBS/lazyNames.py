"""Names of a package that are imported on first use, by PEP 562."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

__all__ = ["lazy"]


def lazy(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return the functions `__getattr__` and `__dir__` of a package, and its `__all__`.

    Parameters
    ----------
    package : str
        Its full name.
    homes : Mapping[str, Sequence[str]]
        The names that the package exports, by module. The modules are attributes too, listed by `__dir__` and not by
        `__all__`.
    """
    home_of = {name: module for module, names in homes.items() for name in names}
    modules = {module.partition(".")[0] for module in homes}

    def getattr_lazily(name: str) -> object:
        if name in home_of:
            value: object = getattr(import_module(f"{package}.{home_of[name]}"), name)
        elif name in modules:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def dir_with_lazy_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of, *modules})

    return getattr_lazily, dir_with_lazy_names, sorted(home_of)
