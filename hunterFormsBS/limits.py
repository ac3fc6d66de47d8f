"""Limits for the contents of untrusted files.

They are far above what real files need: the largest checkpoints of the catalogue have a few thousand tensors and 1.3
GB, and their pickles a few hundred kilobytes. They are far below what would hang a program or exhaust memory.
"""

from __future__ import annotations

import zipfile
from typing import Final

LARGEST_TEXT: Final = 16 * 2**20
"""Bytes of a file that is read as text: a configuration, or the index of several safetensors files."""

LARGEST_HEADER: Final = 64 * 2**20
"""Bytes of the description of a file's tensors: a checkpoint's pickle, or the header of safetensors."""

MOST_INSTRUCTIONS: Final = 4_000_000
"""Instructions of a pickle. A tensor takes about 40, and an optimizer keeps two more for each."""

MOST_KEYS: Final = 200_000
"""Entries of a mapping in a configuration, tensors in a state dict, entries in an archive."""

MOST_SHARDS: Final = 1000
"""Files in an index."""

MOST_VALUES: Final = 1_000_000
"""Values of a configuration, with aliases expanded."""

DEEPEST: Final = 50
"""Nesting depth of a configuration."""

DEEPEST_WEIGHTS: Final = 8
"""Containers around a state dict."""

LONGEST_KEY: Final = 500
"""Characters of a tensor's key."""

MOST_DIGITS: Final = 5
"""Digits of a number in a tensor's key, an index of layers, bands or stems."""

MOST_AXES: Final = 16
"""Axes of a tensor."""

LONGEST_INTEGER: Final = 256
"""Bytes of an integer in a pickle."""

LARGEST_EXPANSION: Final = 100
"""Largest ratio of an archive's contents to the archive; weights hardly compress."""

COMPRESSIONS: Final = frozenset((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
"""Compression methods allowed in an archive. Some of the others allocate gigabytes."""

MOST_RESTARTS: Final = 2
"""How often a server may interrupt a download and restart it from the beginning."""

LONGEST_MATCHING: Final = 5.0
"""Seconds for matching an adapter's names and regular expressions with a model's layers."""

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
