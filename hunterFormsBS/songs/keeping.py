"""Stems kept in a temporary file of 32-bit floating-point numbers, to be read from the beginning more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import IO

import torch
from torch import Tensor

__all__ = ["Kept"]

VALUES_PER_READ = 1 << 20


class Kept:
    """A stream of blocks `(n, s, t)`, float32, read to its end into a file that `scratch` opens for nothing else."""

    def __init__(self, stream: Iterable[Tensor], scratch: Callable[[], IO[bytes]]) -> None:
        self._file = scratch()
        self._shape = (0, 0)
        self._length = 0
        for block in stream:
            self._shape = (block.shape[0], block.shape[1])
            self._length += block.shape[-1]
            # Sample by sample, so that each block is one run of the file whatever its length.
            self._file.write(block.float().permute(2, 0, 1).contiguous().numpy().data)
        self._file.flush()

    def blocks(self) -> Iterator[Tensor]:
        """Read the stream again."""
        stems, channels = self._shape
        frames = max(1, VALUES_PER_READ // max(1, stems * channels))
        for start in range(0, self._length, frames):
            block = torch.empty(min(frames, self._length - start), stems, channels)
            self._file.seek(start * stems * channels * 4)
            if self._file.readinto(block.numpy().data.cast("B")) != block.numel() * 4:  # type: ignore[attr-defined]
                raise OSError("a temporary file in the output folder is shorter than what was written to it")
            yield block.permute(1, 2, 0)
