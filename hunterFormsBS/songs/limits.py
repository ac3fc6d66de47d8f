"""How large what a song's file says may be, in one place: far above what real songs need."""

from __future__ import annotations

from typing import Final

LOWEST_RATE: Final = 1000
"""Samples a second."""

HIGHEST_RATE: Final = 768_000
"""Samples a second: twice that of the finest converters."""

LONGEST_TEXT: Final = 4000
"""Characters of one tag, such as a title."""

MOST_TEXTS: Final = 100
"""Values of one tag, such as artists."""

LARGEST_TAGS: Final = 64 * 2**20
"""Bytes of all compressed tags of a song once they are decompressed."""

LARGEST_PICTURES: Final = 32 * 2**20
"""Bytes of all pictures of a song together."""
