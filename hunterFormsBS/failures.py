"""Failures of a program: errors that become one line, and exit statuses."""

from __future__ import annotations

from typing import Final

__all__ = ["FAILED", "FAILURES", "INTERRUPTED", "UNUSABLE", "UsageError"]

FAILED: Final = 1
"""Exit status if something failed."""

UNUSABLE: Final = 2
"""Exit status if the command line cannot be used."""

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, which shells report for a program that SIGINT ended."""

FAILURES: Final = (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""Everything that bad files and settings raise. Any other exception is a bug, and shows its traceback."""


class UsageError(Exception):
    """A command line that cannot be used."""
