"""Overlap-add of a stream: where chunks lie, what they weigh, and which part of the sum no later chunk can change.

Axis letters in this module: s channels, t samples, n stems.
"""

from __future__ import annotations

import math
from collections import deque
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Chunks", "OverlapAdd", "Stream"]


class Stream:
    """The part of a song that chunks still need: blocks in at one end, and out at the other once they are past."""

    def __init__(self) -> None:
        self.received = 0
        self.channels = 0
        self._blocks: deque[tuple[int, Tensor]] = deque()

    def append(self, block: Tensor) -> None:
        """Take the next samples of the song, `(s, t)`."""
        self.channels = block.shape[0]
        if block.shape[-1]:
            self._blocks.append((self.received, block))
            self.received += block.shape[-1]

    def forget(self, before: int) -> None:
        """Let go of blocks that end before this sample."""
        while self._blocks and self._blocks[0][0] + self._blocks[0][1].shape[-1] <= before:
            self._blocks.popleft()

    def copy_to(self, target: Tensor, start: int, stop: int) -> None:
        """Copy samples `start` to `stop - 1` of the song into a tensor `(s, t)` of any device and dtype."""
        for place, block in self._blocks:
            first, last = max(start, place), min(stop, place + block.shape[-1])
            if first < last:
                target[:, first - start : last - start].copy_(block[:, first - place : last - place])


class _Window(NamedTuple):
    """Place and shape of a chunk's window: first sample, and how many samples it rises and falls."""

    start: int
    rise: int
    fall: int


class Chunks:
    """Where the chunks of a song lie, one every `step` samples, and what they weigh.

    While `length` is None, the song goes on for nobody knows how long, and the answers hold for chunks that are
    `settled`: the last chunk, which is moved back to end with the song, lies beyond all that overlaps them.
    """

    def __init__(self, chunk_size: int, step: int, dtype: torch.dtype, device: torch.device) -> None:
        self.chunk_size = chunk_size
        self.step = step
        self.dtype = dtype
        self.device = device
        self.length: int | None = None
        self._reach = math.ceil(chunk_size / step)
        self._shape = cache(partial(_squared_sines, chunk_size))
        self._weights: dict[tuple[_Window, ...], Tensor] = {}

    def count(self, length: int) -> int:
        """Return the number of chunks of a song."""
        return 1 + math.ceil(max(0, length - self.chunk_size) / self.step)

    def is_settled(self, index: int, received: int) -> bool:
        """Tell whether no length that the song may still get changes the place or the weights of a chunk."""
        # Chunks that overlap this one begin within it, and how they fall depends on the one after them.
        return self.length is not None or received >= index * self.step + 2 * self.chunk_size + self.step

    def is_there(self, index: int) -> bool:
        """Tell whether the song has this chunk, as far as is known."""
        return index >= 0 and (self.length is None or index < self.count(self.length))

    def start(self, index: int) -> int:
        """Return the first sample of a chunk."""
        start = index * self.step
        return start if self.length is None else max(0, min(start, self.length - self.chunk_size))

    def span(self, index: int) -> tuple[int, int]:
        """Return the first sample of the song in a chunk and the one after its last."""
        start = self.start(index)
        stop = start + self.chunk_size
        return start, stop if self.length is None else min(self.length, stop)

    def final(self, index: int) -> int:
        """Return up to where the sum is final once a chunk and all before it are added: where the next one begins."""
        return self.start(index + 1) if self.is_there(index + 1) else self.span(index)[1]

    def audio(self, index: int, stream: Stream, target: Tensor) -> None:
        """Fill a tensor `(s, t)` with a chunk: a song that is shorter is mirrored at its end, then silent."""
        start, stop = self.span(index)
        music = stop - start
        stream.copy_to(target[:, :music], start, stop)
        if music < self.chunk_size:
            mirrored = min(music - 1, self.chunk_size - music)
            target[:, music : music + mirrored] = target[:, music - 1 - mirrored : music - 1].flip(-1)
            target[:, music + mirrored :].zero_()

    def weights(self, index: int) -> Tensor:
        """Return a chunk's window divided by the sum of all windows that overlap it: `(t)`.

        Away from the ends of a song the chunks lie alike and share one tensor.
        """
        own = self._window(index)
        indices = filter(self.is_there, range(index - self._reach, index + self._reach + 1))
        geometry = tuple(
            window._replace(start=window.start - own.start)
            for window in map(self._window, indices)
            if abs(window.start - own.start) < self.chunk_size
        )
        if geometry not in self._weights:
            total = torch.zeros(self.chunk_size, dtype=torch.float64, device="cpu")
            for offset, rise, fall in geometry:
                target = slice(max(0, offset), self.chunk_size + min(0, offset))
                source = slice(max(0, -offset), self.chunk_size - max(0, offset))
                total[target] += self._shape(rise, fall)[source]
            self._weights[geometry] = (self._shape(own.rise, own.fall) / total).to(self.dtype).to(self.device)
        return self._weights[geometry]

    def _window(self, index: int) -> _Window:
        # A window rises over what the chunk shares with the one before it, and falls likewise, each within its half.
        # At the ends of the song, and where chunks abut, it is flat.
        return _Window(self.start(index), self._fade(index - 1), self._fade(index))

    def _fade(self, index: int) -> int:
        """Return over how many samples a chunk gives way to the next."""
        if not (self.is_there(index) and self.is_there(index + 1)):
            return 0
        shared = self.start(index) + self.chunk_size - self.start(index + 1)
        return min(self.chunk_size // 2, max(0, shared))


class OverlapAdd:
    """The weighted sum of estimates, of which only what later chunks may still change is kept."""

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self._open: Tensor | None = None

    def add(self, index: int, estimate: Tensor) -> Tensor:
        """Add the estimate `(n, s, t)` of the next chunk; return the samples that are final now, `(n, s, t')`."""
        start, stop = self.chunks.span(index)
        # What inference mode allocates cannot take part in a backward pass afterwards.
        with torch.inference_mode(mode=False):
            summed = torch.zeros((*estimate.shape[:-1], stop - start), dtype=estimate.dtype, device=estimate.device)
            if self._open is not None:
                summed[..., : self._open.shape[-1]] = self._open
        with torch.no_grad():
            summed.addcmul_(estimate[..., : stop - start], self.chunks.weights(index)[: stop - start])
            final = self.chunks.final(index) - start
            with torch.inference_mode(mode=False):
                self._open = summed[..., final:].clone()
                return summed[..., :final].contiguous()


def _squared_sines(size: int, rise: int, fall: int) -> Tensor:
    """Return `(t)`: a squared sine that rises, ones, and one that falls, none of which reaches zero."""
    window = torch.ones(size, dtype=torch.float64, device="cpu")
    for length, place in ((rise, window[:rise]), (fall, window[size - fall :])):
        angle = torch.linspace(0.5, length - 0.5, length, dtype=torch.float64, device="cpu")
        place.copy_((angle * (math.pi / 2 / max(1, length))).sin().square())
    window[size - fall :] = window[size - fall :].flip(-1)
    return window
