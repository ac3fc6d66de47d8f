"""How large what a stranger's file holds may be, in one place.

The limits are far above what real files need: the largest public checkpoints have a few thousand tensors and 1.3 GB,
and their pickles a few hundred kilobytes. They are far below what would hang a program or take a machine's memory.
"""

from __future__ import annotations

import zipfile
from typing import Final

LARGEST_TEXT: Final = 16 * 2**20
"""Bytes of a file that is read as text: a configuration, or the index of several safetensors files."""

LARGEST_HEADER: Final = 64 * 2**20
"""Bytes of what describes the tensors of a file: the pickle of a checkpoint, or the header of safetensors."""

MOST_INSTRUCTIONS: Final = 4_000_000
"""Instructions of a pickle. A tensor takes about 40, and an optimizer keeps two more for each."""

MOST_KEYS: Final = 200_000
"""Entries of a mapping in a configuration, tensors in a state dict, entries in an archive."""

MOST_SHARDS: Final = 1000
"""Files that an index names."""

MOST_VALUES: Final = 1_000_000
"""Values of a configuration, counted as often as aliases repeat them."""

DEEPEST: Final = 50
"""Containers inside containers of a configuration."""

DEEPEST_WEIGHTS: Final = 8
"""Containers around a state dict."""

LONGEST_KEY: Final = 500
"""Characters of a tensor's key."""

MOST_DIGITS: Final = 5
"""Digits of a number within a tensor's key: layers, bands and stems are counted with them."""

MOST_AXES: Final = 16
"""Axes of a tensor."""

LONGEST_INTEGER: Final = 256
"""Bytes of an integer in a pickle."""

LARGEST_EXPANSION: Final = 100
"""How many times larger what an archive holds may be than the archive; weights hardly compress at all."""

COMPRESSIONS: Final = frozenset((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
"""Methods by which the entries of an archive may be compressed. Of the others, some ask for gigabytes to begin with."""

MOST_RESTARTS: Final = 2
"""How often a server may break off a download, and then send the file from its start."""

LONGEST_MATCHING: Final = 5.0
"""Seconds in which names and regular expressions of adapters are compared with the names of a model's layers."""

# Songs

LOWEST_RATE: Final = 1000
"""Samples a second."""

HIGHEST_RATE: Final = 768_000
"""Samples a second: twice that of the finest converters."""

LONGEST_TAG: Final = 4000
"""Characters of one tag, for example a title."""

MOST_TAGS: Final = 100
"""Values of one tag, for example artists."""

LARGEST_TAGS: Final = 64 * 2**20
"""Bytes of all compressed tags of a song once they are decompressed."""

LARGEST_PICTURES: Final = 32 * 2**20
"""Bytes of all pictures of a song together."""

MOST_STEPS: Final = 50
"""Steps of a recipe."""
