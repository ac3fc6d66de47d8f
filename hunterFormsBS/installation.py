"""How to get what is not installed: the one place that knows, for every message that says so."""

from __future__ import annotations

__all__ = ["how_to_install"]


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
