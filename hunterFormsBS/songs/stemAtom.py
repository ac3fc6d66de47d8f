"""Names and colours of the tracks of a `.stem.mp4`, as DJ programs read them.

The atom `moov/udta/stem` holds JSON, in the format of Native Instruments: the mixture is the first track, four stems
follow it. The settings of a compressor and a limiter belong to the format; both are off.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from io import RawIOBase
from typing import IO

__all__ = ["NUM_STEMS", "add_stem_atom"]

NUM_STEMS = 4
"""As many stems follow the mixture, no more and no less."""

COLORS = ("#009E73", "#D55E00", "#CC79A7", "#56B4E9")
"""Of Okabe and Ito, which colour-blind people tell apart."""

_MASTERING = {
    "compressor": {
        "enabled": False,
        "attack": 0.003,
        "release": 0.3,
        "ratio": 3,
        "threshold": 0,
        "hp_cutoff": 300,
        "input_gain": 0.5,
        "output_gain": 0.5,
        "dry_wet": 50,
    },
    "limiter": {"enabled": False, "release": 0.05, "threshold": 0, "ceiling": -0.35},
}


def add_stem_atom(file: IO[bytes] | RawIOBase, names: Sequence[str]) -> None:
    """Name the `NUM_STEMS` stems of an MP4 file, open for reading and writing, whose `moov` is its last atom."""
    stems = [{"name": name, "color": color} for name, color in zip(names, COLORS, strict=True)]
    content = json.dumps({"mastering_dsp": _MASTERING, "version": 1, "stems": stems}).encode()
    start = _start_of_moov(file)
    file.seek(start)
    atoms = [*_atoms(file.read()[8:])]
    others = b"".join(atom for name, atom in atoms if name != b"udta")
    of_user = b"".join(atom[8:] for name, atom in atoms if name == b"udta") + _atom(b"stem", content)
    file.seek(start)
    # The offsets of samples stay as they are: those lie before.
    file.write(_atom(b"moov", others + _atom(b"udta", of_user)))


def _start_of_moov(file: IO[bytes] | RawIOBase) -> int:
    position = 0
    while True:
        file.seek(position)
        size, name = struct.unpack(">I4s", file.read(8))
        if name == b"moov":
            return position
        position += struct.unpack(">Q", file.read(8))[0] if size == 1 else size


def _atoms(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name of each atom, and the whole of it."""
    position = 0
    while position < len(content):
        size, name = struct.unpack_from(">I4s", content, position)
        yield name, content[position : position + size]
        position += size


def _atom(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content
