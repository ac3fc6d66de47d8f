"""Commands that install missing packages, for messages."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires

__all__ = ["how_to_install", "is_installed"]

PACKAGE = "hunterFormsBS"


def how_to_install(*extras: str) -> str:
    """Return the command that installs the missing packages of extras for the running interpreter.

    It names packages, not extras: an installed wheel's extras cannot be requested without its file, and a package
    registry may have another version.

    Parameters
    ----------
    *extras : str
        Names from `project.optional-dependencies` of pyproject.toml.
    """
    needed = list(dict.fromkeys(requirement for extra in extras for requirement in _requirements(extra)))
    # All of them if each is installed: one must be too old or broken.
    packages = [requirement for requirement in needed if not _is_installed(requirement)] or needed
    # Not by `find_spec`: setuptools takes the search for pip as its import, and torch.compile then fails on 3.11.
    uv = None if _is_installed("pip") else shutil.which("uv")
    installer = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    quoted = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return quoted([*installer, *packages])


def is_installed(extra: str) -> bool:
    """Tell whether all packages of an extra are installed, in any version."""
    return all(map(_is_installed, _requirements(extra)))


def _requirements(extra: str) -> list[str]:
    """Return the requirements of an extra, for example `['av>=18']`."""
    lines = [re.fullmatch(rf"([^;]*?) *;.*\bextra == ['\"]{extra}['\"].*", line) for line in requires(PACKAGE) or ()]
    return [line[1] for line in lines if line]


def _is_installed(requirement: str) -> bool:
    name = re.match(r"[\w.-]+", requirement)
    try:
        return bool(name and distribution(name[0]))
    except PackageNotFoundError:
        return False
