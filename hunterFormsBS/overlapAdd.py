"""Overlap-add of a stream: offsets and weights of chunks, and which part of the sum is final.

Axis letters in this module: s channels, t samples, n stems.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from hunterFormsBS.parametersSeparation import Blend, ParametersSeparation

__all__ = ["KINDS_OF_CHUNKS", "Chunks", "OverlapAdd", "Stream", "aligned", "branches"]

T = TypeVar("T")


class Stream:
    """The part of a song that chunks still need: a queue of blocks."""

    def __init__(self, blocks: Iterator[Tensor]) -> None:
        self.received = 0
        self.channels = 0
        self._source = blocks
        self._blocks: deque[tuple[int, Tensor]] = deque()

    def read(self) -> bool:
        """Read the next block of the song, `(s, t)`, if there is one."""
        block = next(self._source, None)
        if block is None:
            return False
        self.channels = block.shape[0]
        if block.shape[-1]:
            self._blocks.append((self.received, block))
            self.received += block.shape[-1]
        return True

    def forget(self, before: int) -> None:
        """Drop blocks that end before this sample."""
        while self._blocks and self._blocks[0][0] + self._blocks[0][1].shape[-1] <= before:
            self._blocks.popleft()

    def copy_to(self, target: Tensor, start: int, stop: int) -> None:
        """Copy samples `start` to `stop - 1` of the song into a tensor `(s, t)` of any device and dtype."""
        for offset, block in self._blocks:
            first, last = max(start, offset), min(stop, offset + block.shape[-1])
            if first < last:
                target[:, first - start : last - start].copy_(block[:, first - offset : last - offset])


class _Window(NamedTuple):
    """A chunk's window: its first sample, and its shape as the arguments of `Chunks.window`."""

    start: int
    shape: tuple[int, ...]


class Chunks:
    """Offsets of a song's chunks, one every `step` samples, and their weights: the blend "smooth".

    The other blends override the methods in which they differ.

    While `length` is None, the length of the song is unknown, and the results hold only for chunks for which
    `is_settled` is true: the last chunk, which is moved back to end with the song, starts after everything that
    overlaps them.
    """

    def __init__(self, parameters: ParametersSeparation, dtype: torch.dtype, device: torch.device) -> None:
        self.chunk_size = parameters.chunk_size
        step = parameters.chunk_size / parameters.num_overlap
        # 110 / 1.1 is 100, and 110 // 1.1 is 99: a fraction as a decimal number is not that fraction.
        self.step = round(step) if math.isclose(step, round(step), rel_tol=1e-13) else int(step)
        self.batch_size = parameters.batch_size
        self.dtype = dtype
        self.device = device
        self.length: int | None = None
        self._reach = math.ceil(self.chunk_size / self.step)
        self._shape = cache(partial(self.window, self.chunk_size))
        self._weights: dict[tuple[_Window, ...], Tensor] = {}

    @property
    def samples(self) -> int:
        """Length of a chunk for the model, in samples."""
        return self.chunk_size

    def continued(self, blocks: Iterator[Tensor]) -> tuple[Iterator[Tensor], int]:
        """Return a song with borders before and after it, and their length in samples."""
        return blocks, 0

    def border(self, length: int) -> int:  # noqa: ARG002  # other chunks ask
        """Return the length of the borders before and after a song, in samples."""
        return 0

    def number(self, length: int, start: int, end: float) -> int:
        """Return how many chunks a part of a song needs."""
        border = self.border(length)
        return self.count(length + 2 * border, min(end, length) + border) - self.first(start + border)

    def count(self, length: int, end: float = math.inf) -> int:
        """Return the number of chunks of a song that begin before a sample."""
        begin = max(0, length - self.chunk_size)  # of the last chunk
        return 1 + math.ceil(begin / self.step) if end > begin else math.ceil(end / self.step)

    def first(self, start: int) -> int:
        """Return the first chunk that ends after a sample."""
        return max(0, (start - self.chunk_size) // self.step + 1)

    def is_settled(self, index: int, received: int) -> bool:
        """Tell whether the offset and the weights of a chunk are independent of how the song continues."""
        # Chunks that overlap this one begin within it, and how they fade out depends on the next one.
        return self.length is not None or received >= index * self.step + 2 * self.chunk_size + self.step

    def least(self, index: int, received: int) -> int:
        """Return the smallest first sample that a chunk can have, however long the song is."""
        return min(index * self.step, received - self.chunk_size)

    def is_there(self, index: int) -> bool:
        """Tell whether the song has this chunk, as far as known."""
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
        """Return the sample before which the sum is final once this chunk is added: where the next one begins."""
        return self.start(index + 1) if self.is_there(index + 1) else self.span(index)[1]

    def audio(self, index: int, stream: Stream, target: Tensor) -> None:
        """Fill a tensor `(s, t)` with a chunk: a shorter song is mirrored at its end, then silent."""
        start, stop = self.span(index)
        music = stop - start
        stream.copy_to(target[:, :music], start, stop)
        if music < target.shape[-1]:
            mirrored = self.mirrored(music)
            target[:, music : music + mirrored] = target[:, music - 1 - mirrored : music - 1].flip(-1)
            target[:, music + mirrored :].zero_()

    def mirrored(self, music: int) -> int:
        """Return how many mirrored samples extend a chunk that the song does not fill."""
        return min(music - 1, self.chunk_size - music)

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
            for offset, shape in geometry:
                target = slice(max(0, offset), self.chunk_size + min(0, offset))
                source = slice(max(0, -offset), self.chunk_size - max(0, offset))
                total[target] += self._shape(*shape)[source]
            # Where only its own window reaches and is zero, the estimate does not count.
            weights = (self._shape(*own.shape) / total).nan_to_num(nan=0.0)
            self._weights[geometry] = weights.to(self.dtype).to(self.device)
        return self._weights[geometry]

    def _window(self, index: int) -> _Window:
        # A window rises over the overlap with the chunk before it and falls over that with the next, each within its
        # half. At the ends of the song, and where chunks abut, it is flat.
        return _Window(self.start(index), (self._fade(index - 1), self._fade(index)))

    @staticmethod
    def window(size: int, rise: int = 0, fall: int = 0) -> Tensor:
        """Return `(t)`: a rising squared sine, ones, and a falling squared sine, never zero."""
        window = torch.ones(size, dtype=torch.float64, device="cpu")
        for length, slope in ((rise, window[:rise]), (fall, window[size - fall :])):
            angle = torch.linspace(0.5, length - 0.5, length, dtype=torch.float64, device="cpu")
            slope.copy_((angle * (math.pi / 2 / max(1, length))).sin().square())
        window[size - fall :] = window[size - fall :].flip(-1)
        return window

    def _fade(self, index: int) -> int:
        """Return the length of the fade from one chunk to the next."""
        if not (self.is_there(index) and self.is_there(index + 1)):
            return 0
        shared = self.start(index) + self.chunk_size - self.start(index + 1)
        return min(self.chunk_size // 2, max(0, shared))


class _ChunksOfAudioSeparator(Chunks):
    """The chunks of audio-separator: Hamming windows; a song shorter than one chunk is not padded."""

    @property
    def samples(self) -> int:
        """Length of a chunk for the model, in samples: that of the song if it is shorter."""
        return self.chunk_size if self.length is None else min(self.chunk_size, self.length)

    def _window(self, index: int) -> _Window:
        return _Window(self.start(index), ())

    @staticmethod
    def window(size: int, rise: int = 0, fall: int = 0) -> Tensor:  # noqa: ARG004  # one shape for all
        """Return `(t)`: a symmetric Hamming window, which does not reach zero."""
        return torch.hamming_window(size, periodic=False, dtype=torch.float64, device="cpu")


class _ChunksWithBorders(Chunks):
    """Chunks of a song that is extended at both ends by its mirror image, if it is longer than two borders.

    Chunks begin as long as there are samples. Windows rise from zero and fall to zero linearly.
    """

    def continued(self, blocks: Iterator[Tensor]) -> tuple[Iterator[Tensor], int]:
        """Return a song with its mirror image at both ends, and the length of a border, 0 if the song is too short."""
        read: list[Tensor] = []
        received = 0
        while received <= 2 * (self.chunk_size - self.step) and (block := next(blocks, None)) is not None:
            read.append(block)
            received += block.shape[-1]
        border = self.border(received)
        if not border:
            return chain(read, blocks), 0
        return _with_borders(read[0] if len(read) == 1 else torch.cat(read, dim=-1), blocks, border), border

    def border(self, length: int) -> int:
        """Return the overlap of chunks, in samples, if a song is longer than twice that."""
        border = self.chunk_size - self.step
        return border if length > 2 * border else 0

    def count(self, length: int, end: float = math.inf) -> int:
        """Return the number of chunks of a song that begin before a sample."""
        return math.ceil(min(length, end) / self.step)

    def start(self, index: int) -> int:
        """Return the first sample of a chunk."""
        return index * self.step

    @staticmethod
    def window(size: int, rise: int = 0, fall: int = 0, flat: int | None = None) -> Tensor:
        """Return `(t)`: a linear rise from zero, ones, and a linear fall to zero; ones from `flat` on."""
        window = torch.ones(size, dtype=torch.float64, device="cpu")
        window[:rise] = torch.linspace(0, 1, rise, dtype=torch.float64, device="cpu")
        window[size - fall :] = torch.linspace(1, 0, fall, dtype=torch.float64, device="cpu")
        window[flat if flat is not None else size :] = 1
        return window


class _ChunksOfMSST(_ChunksWithBorders):
    """The chunks of MSST's `demix`.

    A chunk that the song does not fill is mirrored at its end if it is more than half full. Windows rise and fall over
    a tenth of a chunk. The first rises only if it is computed with others; none in the last batch falls.
    """

    def is_settled(self, index: int, received: int) -> bool:
        """Tell whether no length that the song may still get changes the weights of a chunk."""
        # They depend on which chunks that overlap this one are computed together with the last one.
        return self.length is not None or received > (index + self._reach + self.batch_size) * self.step

    def mirrored(self, music: int) -> int:
        """Return how many mirrored samples extend a chunk that the song does not fill."""
        return self.chunk_size - music if music > self.chunk_size // 2 else 0

    def _window(self, index: int) -> _Window:
        fade = self.chunk_size // 10
        count = None if self.length is None else self.count(self.length)
        alone = index == 0 and (self.batch_size == 1 or count == 1)
        last = count is not None and index // self.batch_size == (count - 1) // self.batch_size
        return _Window(self.start(index), (0 if alone else fade, 0 if last and not alone else fade))


class _ChunksOfPymss(_ChunksWithBorders):
    """The chunks of pymss's `demix_track`.

    A chunk that the song does not fill is mirrored at its end if it is more than half full, by at least two samples.
    Windows rise and fall over a tenth of a chunk, but no further than chunks overlap. The first does not rise; one that
    reaches the end of the song is flat over its last tenth, even where it would still rise.
    """

    def is_settled(self, index: int, received: int) -> bool:
        """Tell whether no length that the song may still get changes the weights of a chunk."""
        # They depend on which chunks that overlap this one reach the end.
        return self.length is not None or received > (index + self._reach) * self.step + self.chunk_size

    def mirrored(self, music: int) -> int:
        """Return how many mirrored samples extend a chunk that the song does not fill."""
        return self.chunk_size - music if music > self.chunk_size // 2 + 1 else 0

    def _window(self, index: int) -> _Window:
        fade = min(self.chunk_size // 10, self.chunk_size - self.step)
        start, stop = self.span(index)
        rise = fade if index else 0
        if stop != self.length:
            return _Window(start, (rise, fade))
        return _Window(start, (rise, 0, max(0, stop - start - fade)))


KINDS_OF_CHUNKS: Mapping[Blend, type[Chunks]] = {
    "smooth": Chunks,
    "msst": _ChunksOfMSST,
    "pymss": _ChunksOfPymss,
    "audio-separator": _ChunksOfAudioSeparator,
}


def _with_borders(head: Tensor, blocks: Iterator[Tensor], border: int) -> Iterator[Tensor]:
    """Yield a song, whose first samples are already read, between the mirror images of its beginning and its end."""
    yield head[:, 1 : border + 1].flip(-1)
    yield head
    end = head
    for block in blocks:
        end = torch.cat([end[:, -border - 1 :], block], dim=-1)
        yield block
    yield end[:, -border - 1 : -1].flip(-1)


class OverlapAdd:
    """The weighted sum of estimates; only the part that later chunks may change is kept.

    It returns the samples of the song from `start` to before `end`.
    """

    def __init__(self, chunks: Chunks, start: int = 0, end: float = math.inf) -> None:
        self.chunks = chunks
        self.start = start
        self.end = end
        self._open: Tensor | None = None

    def add(self, index: int, estimate: Tensor) -> Tensor:
        """Add the estimate `(n, s, t)` of the next chunk; return the samples that are final now, `(n, s, t')`."""
        start, stop = self.chunks.span(index)
        # Tensors allocated in inference mode cannot take part in a backward pass later.
        with torch.inference_mode(mode=False):
            summed = torch.zeros((*estimate.shape[:-1], stop - start), dtype=estimate.dtype, device=estimate.device)
            if self._open is not None:
                summed[..., : self._open.shape[-1]] = self._open
        with torch.no_grad():
            summed.addcmul_(estimate[..., : stop - start], self.chunks.weights(index)[: stop - start])
            final = self.chunks.final(index) - start
            with torch.inference_mode(mode=False):
                self._open = summed[..., final:].clone()
                wanted = slice(max(0, self.start - start), max(0, min(self.end, start + final) - start))
                return summed[..., :final][..., wanted].contiguous()


def aligned(streams: Sequence[Iterable[Tensor]], *, alike: bool = True) -> Iterator[list[Tensor]]:
    """Yield equally many samples of all streams, float32 or better; with `alike`, refuse different other axes."""
    iterators = [iter(stream) for stream in streams]
    held: list[Tensor | None] = [None] * len(streams)
    read = [0] * len(streams)
    while True:
        for number, iterator in enumerate(iterators):
            block = held[number]
            while block is None or block.shape[-1] == 0:
                block = next(iterator, None)
                if block is None:
                    break
                block = block.detach().to(torch.promote_types(block.dtype, torch.float32))
                read[number] += block.shape[-1]
            held[number] = block
        if all(block is None for block in held):
            return
        if any(block is None for block in held):
            message = f"all streams must be equally long: one ended before the others, after {read} samples read."
            raise ValueError(message)
        blocks = cast("list[Tensor]", held)
        shapes = {tuple(block.shape[:-1]) for block in blocks}
        if alike and len(shapes) > 1:
            message = (
                f"all streams must have the same stems and channels: received {sorted(shapes)}. "
                "Choose stems with `block[ids]`."
            )
            raise ValueError(message)
        samples = min(block.shape[-1] for block in blocks)
        yield [block[..., :samples] for block in blocks]
        held = [block[..., samples:] for block in blocks]


def branches(stream: Iterator[T], count: int) -> list[Iterator[T]]:
    """Return several iterators over one stream. An item is held until all have read it.

    `itertools.tee` holds up to 57 items more.
    """
    waiting: list[deque[T]] = [deque() for _ in range(count)]

    def branch(mine: deque[T]) -> Iterator[T]:
        while True:
            if not mine:
                try:
                    item = next(stream)
                except StopIteration:
                    return
                for each in waiting:
                    each.append(item)
                del item
            yield mine.popleft()

    return [branch(each) for each in waiting]
