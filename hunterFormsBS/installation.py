"""How to get what is not installed: the one place that knows, for every message that says so."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["how_to_install", "require"]


def how_to_install(extra: str) -> str:
    """Return the clause of an error message that says how to install an extra of this package.

    From a copy of the repository, because version 0.4.0 is not in a package registry: there, the same name and extra
    install an older package that has neither.

    Parameters
    ----------
    extra : str
        An extra of pyproject.toml, or several with commas between them.
    """
    return f'python -m pip install -e ".[{extra}]" in a copy of the repository of hunterFormsBS'


def require(extra: str, *modules: str) -> None:
    """Raise an ImportError that says how to install an extra, unless all of these modules are installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise ImportError(f"{', '.join(missing)} is not installed: {how_to_install(extra)}")
