"""How the C library treats freed memory: a program may decide that, a library may not."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGEST: Final = 2**30
"""Bytes. glibc takes an int."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, which the next layer would get back page by page: 6 % of inference.

    Does nothing with another C library, or if `MALLOC_…` or `GLIBC_TUNABLES` is in the environment.
    """
    if sys.platform != "linux" or any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        is_glibc = os.confstr("CS_GNU_LIBC_VERSION") is not None
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, ValueError):
        return
    if is_glibc:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _LARGEST)
