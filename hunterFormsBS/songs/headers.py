"""What the headers of audio files say about their length, which libsndfile corrects silently in files cut off."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

ENDLESS = (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)
"""Sizes in the header of a WAV file whose writer could not go back to it, beside 0."""

ENDLESS_LONG = 1 << 60
"""From here on a size of 64 bits means the same."""

_MOST_CHUNKS = 10_000


class Header(NamedTuple):
    """What a header says.

    Parameters
    ----------
    length : int | None
        Samples of each channel; None if it says nothing.
    unsized : int | None
        Where in the file the size of samples stands that go on to the end of the file whatever it says.
    cut_off : bool
        Whether the file ends without the mark that ends its format.
    """

    length: int | None = None
    unsized: int | None = None
    cut_off: bool = False


class _Chunk(NamedTuple):
    name: bytes
    start: int
    size: int


def read_header(pathFilename: Path) -> Header:
    """Read what the header says of a WAV, RF64, W64, AIFF, CAF, AU or Ogg file; nothing of others and in half a header.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with pathFilename.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(0)
        try:
            return _read(file, end, file.read(16))
        except struct.error:
            return Header()


def _read(file: IO[bytes], end: int, first: bytes) -> Header:
    if first[:4] in (b"RIFF", b"RF64", b"BW64"):
        return _wave(file, end, first)
    if first[:4] == b"FORM":
        return _aiff(file, end)
    if first == _W64_RIFF:
        return _w64(file, end)
    if first[:4] == b"caff":
        return _caf(file, end)
    if first[:4] == b".snd":
        return _au(end, first + file.read(8))
    if first[:4] == b"OggS":
        return Header(cut_off=not _ends_its_streams(file, end))
    return Header()


def _chunks(file: IO[bytes], end: int, position: int, layout: str, even: int = 2) -> Iterator[_Chunk]:
    """Yield the chunks of a file from a position on, sizes as they stand there."""
    width = struct.calcsize(layout)
    for _ in range(_MOST_CHUNKS):
        if position + width > end:
            return
        file.seek(position)
        name, size = struct.unpack(layout, file.read(width))
        yield _Chunk(name, position + width, size)
        position += width + size + -size % even


def _wave(file: IO[bytes], end: int, first: bytes) -> Header:
    """Read the frame size in `fmt `, and the size in `data`, or in `ds64` where 32 bits do not hold it."""
    (riff_size,) = struct.unpack_from("<I", first, 4)
    bytes_a_frame, long_size = 0, None
    for chunk in _chunks(file, end, 12, "<4sI"):
        file.seek(chunk.start)
        if chunk.name == b"ds64" and chunk.size >= 24:
            (long_size,) = struct.unpack_from("<Q", file.read(24), 8)
        elif chunk.name == b"fmt " and chunk.size >= 16:
            kind, _, _, _, bytes_a_frame, _ = struct.unpack("<HHIIHH", file.read(16))
            # In compressed kinds a block holds many samples.
            bytes_a_frame = bytes_a_frame if kind in (1, 3, 0xFFFE) else 0
        elif chunk.name == b"data":
            size = chunk.size or long_size or 0
            if size == ENDLESS[0] and long_size is not None:
                size = long_size
            never_set = riff_size == 0 or riff_size >= ENDLESS[2] or riff_size + 8 == chunk.start
            left_empty = size == 0 and chunk.start < end and (never_set or not _is_chunk(file, end, chunk.start))
            if left_empty or (size in ENDLESS and chunk.start + size > end):
                return Header(unsized=chunk.start - 4)
            return Header(size // bytes_a_frame if bytes_a_frame else None, cut_off=chunk.start + size > end)
    return Header()


def _is_chunk(file: IO[bytes], end: int, position: int) -> bool:
    """Tell whether this looks like one more chunk, and not like samples."""
    chunk = next(_chunks(file, end, position, "<4sI"), None)
    return chunk is not None and all(32 <= byte < 127 for byte in chunk.name) and chunk.start + chunk.size <= end


def _aiff(file: IO[bytes], end: int) -> Header:
    """Read the number of frames in `COMM`."""
    length, cut_off = None, False
    for chunk in _chunks(file, end, 12, ">4sI"):
        if chunk.name == b"COMM" and chunk.size >= 18:
            file.seek(chunk.start)
            _, length = struct.unpack(">HI", file.read(6))
        elif chunk.name == b"SSND":
            cut_off = chunk.start + chunk.size > end
    return Header(length, cut_off=cut_off)


def _caf(file: IO[bytes], end: int) -> Header:
    """Read the sizes of a packet in `desc`, and the size in `data`, which has a number of edits before the samples."""
    bytes_a_packet, frames_a_packet = 0, 0
    for chunk in _chunks(file, end, 8, ">4sq", even=1):
        if chunk.name == b"desc" and chunk.size >= 32:
            file.seek(chunk.start)
            bytes_a_packet, frames_a_packet = struct.unpack(">16xII", file.read(24))
        elif chunk.name == b"data" and chunk.size >= 0:
            length = (chunk.size - 4) // bytes_a_packet * frames_a_packet if bytes_a_packet else None
            return Header(length, cut_off=chunk.start + chunk.size > end)
        elif chunk.size < 0:
            break
    return Header()


_BYTES_OF_AU = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
"""Of a sample in each encoding of AU."""


def _au(end: int, first: bytes) -> Header:
    """Read the size of all samples, which may be left open."""
    start, size, encoding, _, channels = struct.unpack_from(">5I", first, 4)
    if size == ENDLESS[0]:
        return Header()
    bytes_a_frame = _BYTES_OF_AU.get(encoding, 0) * channels
    return Header(size // bytes_a_frame if bytes_a_frame else None, cut_off=start + size > end)


_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")


def _w64(file: IO[bytes], end: int) -> Header:
    """Read the same chunks as of WAV, which have identifiers of 16 bytes and sizes that count their own headers."""
    bytes_a_frame, position = 0, 40
    for _ in range(_MOST_CHUNKS):
        if position + 24 > end:
            break
        file.seek(position)
        name, size = struct.unpack("<16sQ", file.read(24))
        if name == b"fmt " + _W64_TAIL:
            (bytes_a_frame,) = struct.unpack_from("<H", file.read(16), 12)
        elif name == b"data" + _W64_TAIL:
            if size >= ENDLESS_LONG:
                return Header()
            return Header((size - 24) // bytes_a_frame if bytes_a_frame else None, cut_off=position + size > end)
        position += max(24, size + -size % 8)
    return Header()


def _ends_its_streams(file: IO[bytes], end: int) -> bool:
    """Tell whether the last page of an Ogg file is marked as the last, and complete."""
    file.seek(max(0, end - 70_000))  # A page has at most 65,307 bytes.
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27 or len(tail) < page + 27 + tail[page + 26]:
        return False
    segments = tail[page + 27 : page + 27 + tail[page + 26]]
    return bool(tail[page + 5] & 4) and len(tail) >= page + 27 + len(segments) + sum(segments)
