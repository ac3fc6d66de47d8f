"""Headers of WAV, RF64 and W64: FFmpeg corrects some sizes silently, and refuses those that were never set.

An incomplete recording would seem complete, and one whose writer could not go back to its header would be lost. ID3
tags within WAV, AIFF and DSF are hidden from FFmpeg, which would decompress them to any size.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

ENDLESS = (0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF)
"""Sizes of samples in WAV whose writer could not go back to state them."""

ENDLESS_LONG = 1 << 60
"""From here on, a size of 64 bits means the same."""

MOST_CHUNKS = 10_000

LONGEST_HEADER = 1 << 20

SNIFFED = 16384
"""Bytes of samples that are searched for compressed audio, which some WAV files hold as if it were PCM."""

LONGEST_DTS_FRAME = 4096

SYNC_WORDS = tuple(map(bytes.fromhex, ("7ffe8001", "fe7f0180", "1fffe800", "ff1f00e8", "72f81f4e")))
"""Of DTS in words of 16 and of 14 bits, in either byte order, and of S/PDIF."""

FIRST_BYTES = (b"\x0b\x77", b"\x77\x0b", b"\xff")
"""Of frames of AC-3 and of MPEG audio."""

RIFF = (b"RIFF", b"RF64", b"BW64")
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")


class _Header(io.BytesIO):
    """The beginning of a file, with the size of all of it."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content)
        self._size = size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_END:
            offset, whence = offset + self._size, os.SEEK_SET
        return super().seek(offset, whence) if offset >= 0 else -1


class PatchedFile(io.FileIO):
    """A file patched on reading, so that FFmpeg reads all samples and no ID3 tag."""

    def __init__(self, pathFilename: Path) -> None:
        super().__init__(os.fspath(pathFilename))  # Python opens names that are not UTF-8 as well.
        self.length: int | None = None
        """Samples of each channel that a WAV or W64 header states."""
        self._pcm_start: int | None = None
        self._patches: dict[int, bytes] = {}
        self._first = super().read(16)
        self.is_wave = self._first[:4] in RIFF or self._first == W64_RIFF
        self._size = self.seek(0, os.SEEK_END)
        self._put_right(self._size)
        self.seek(0)

    def header(self) -> io.BytesIO | None:
        """Return what stands before the samples of a WAV or W64 file; None if these may be compressed audio.

        FFmpeg would compare the first samples to the beginnings of all containers that it knows.
        """
        if self._pcm_start is None:
            return None
        self.seek(0)
        content = self.read(self._pcm_start + SNIFFED)
        sound = content[self._pcm_start :].lstrip(b"\0")[:LONGEST_DTS_FRAME]
        if sound.startswith(FIRST_BYTES) or any(word in sound for word in SYNC_WORDS):
            return None
        return _Header(content[: self._pcm_start], self._size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to an offset, or return -1: damaged headers lead to offsets before the file."""
        try:
            return super().seek(offset, whence)
        except (OSError, OverflowError):
            return -1

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, patched."""
        position = self.tell() if self._patches else 0
        data = super().read(size)
        for start, right in self._patches.items():
            if start < position + len(data) and start + len(right) > position:
                for offset, byte in enumerate(right, start - position):
                    if 0 <= offset < len(data):
                        data = data[:offset] + bytes([byte]) + data[offset + 1 :]
        return data

    def _put_right(self, end: int) -> None:
        """Find patches by the size of a frame in `fmt `, and that of all samples in `data`, or in `ds64` of RF64."""
        if self._first[:4] == b"DSD ":
            self._patches[20] = bytes(8)  # It leads to an ID3 tag.
        bytes_a_frame, long_size = 0, None
        for name, start, size, wide in self._chunks(end):
            self.seek(start)
            if name in (b"id3 ", b"ID3 "):
                self._patches[start - 8] = b"JUNK"
            elif name == b"ds64" and size >= 24:
                (long_size,) = struct.unpack_from("<Q", self.read(24).ljust(24, b"\0"), 8)
            elif name == b"fmt " and size >= 16:
                kind, bytes_a_frame = struct.unpack("<H10xH2x", self.read(16).ljust(16, b"\0"))
                bytes_a_frame *= kind in (1, 3, 0xFFFE)  # In other kinds a block holds many samples.
            elif name == b"data":
                stated = size if wide or long_size is None or size not in ENDLESS else long_size
                if wide and stated >= ENDLESS_LONG - 24:
                    self._patches[start - 8] = struct.pack("<Q", end - start + 24)
                elif wide or stated not in ENDLESS:
                    self.length = stated // bytes_a_frame if bytes_a_frame else None
                    self._pcm_start = start if self.length and start <= LONGEST_HEADER else None
                    continue
                elif long_size is not None:
                    self._patches |= {0: b"RIFF", start - 4: b"\xff\xff\xff\xff"}
                return

    def _chunks(self, end: int) -> Iterator[tuple[bytes, int, int, bool]]:
        """Yield the name, the start and the size of chunks of WAV and AIFF, and whether the size has 64 bits."""
        wide, little = self._first == W64_RIFF, self._first[:4] != b"FORM"
        if little and not self.is_wave:
            return
        position, head = (40, 24) if wide else (12, 8)
        for _ in range(MOST_CHUNKS):
            if position + head > end:
                return
            self.seek(position)
            header = self.read(head)
            size = int.from_bytes(header[16 if wide else 4 :], "little" if little else "big") - 24 * wide
            yield header[:4], position + head, size, wide
            position += head + max(0, size) + -size % (8 if wide else 2)
