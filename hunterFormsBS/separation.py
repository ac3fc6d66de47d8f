"""Separate songs of any length by overlap-add of weighted chunks.

The one overlap-add works on streams; `separate` passes a whole song as one block. The song stays on its device, usually
the CPU; the model's device gets one batch of chunks at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TypeAlias, Unpack

import torch
from torch import Tensor

from hunterFormsBS.estimates import Estimator, is_finite, model_within
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.overlapAdd import KINDS_OF_CHUNKS, Chunks, OverlapAdd, Stream, aligned
from hunterFormsBS.parametersSeparation import KeywordsSeparation, ParametersSeparation
from hunterFormsBS.signature import with_fields_of

__all__ = ["ParametersSeparation", "Progress", "iter_blocks", "separate", "separate_stream", "stems_of"]

Progress: TypeAlias = Callable[[int, int], object]
"""Called after each chunk with the number of chunks done and the number of all chunks."""


@with_fields_of(ParametersSeparation)
def separate(
    model: Callable[[Tensor], Tensor],
    mixture: Tensor,
    *,
    progress: bool | Progress = False,
    **keywords: Unpack[KeywordsSeparation],
) -> Tensor:
    """Separate a whole song into stems.

    Chunks begin every `chunk_size // num_overlap` samples. The last one is moved back to end with the song. Where
    chunks overlap, their estimates are averaged with weights that rise and fall as squared sines and sum to one at
    every sample. `blend` selects the methods of other programs.

    A song shorter than one chunk is extended by its mirror image, then by silence, so the model gets the length that it
    was trained on, a compiled model sees one shape, and the end of the song does not click. For many short clips a
    smaller `chunk_size` costs less. A `BandSplitRotator` is not called for chunks of zeros, whose estimates are zeros.

    Parameters
    ----------
    model : Callable[[Tensor], Tensor]
        Maps `(b, s, t)` to `(b, n, s, t)`. Only its attribute `stereo` is read; without it channels are passed
        unchanged. A module runs in eval mode, and its training flags are restored afterwards.
    mixture : Tensor
        Floating-point audio, `(s, t)`, or `(t,)` for mono.
    progress : bool | Progress, default False
        `True` shows a progress bar; a callable gets the number of chunks done and of all chunks.
    **keywords : Unpack[KeywordsSeparation]
        The fields of `ParametersSeparation`.

    Returns
    -------
    stems : Tensor
        `(n, s, t)` on the mixture's device, as long as the mixture or its part. A stereo model returns two channels for
        mono audio; a mono model separates each channel of stereo audio. The dtype is float32, or float64 if mixture and
        model are float64.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.
    RuntimeError
        If the model returns another shape or values that are not finite.
    torch.OutOfMemoryError
        If not even one chunk fits the device.
    """
    shape = getattr(mixture, "shape", ())
    length = shape[-1] if shape else None
    parameters = ParametersSeparation(**keywords)
    blocks = stems_of(model, iter([mixture]), parameters, what="mixture", length=length, progress=progress)
    first = next(blocks)
    expected = first.shape[-1] if length is None else int(min(length, parameters.stop)) - parameters.start
    if first.shape[-1] == expected:
        blocks.close()
        return first
    with torch.inference_mode(mode=False):
        stems = first.new_empty((*first.shape[:-1], expected))
    offset = 0
    for block in chain([first], blocks):
        with torch.no_grad():
            stems[..., offset : offset + block.shape[-1]] = block
        offset += block.shape[-1]
    return stems


@with_fields_of(ParametersSeparation)
def separate_stream(
    model: Callable[[Tensor], Tensor],
    blocks: Iterable[Tensor],
    *,
    length: int | None = None,
    progress: bool | Progress = False,
    **keywords: Unpack[KeywordsSeparation],
) -> Generator[Tensor]:
    """Separate a song that arrives in blocks, for example from a file or a pipe, holding a few chunks at a time.

    The stems equal those of `separate`, sample for sample. About three chunks must have arrived before the first is
    separated, because the last chunk is moved back to end with the song. With `shifts` the whole song must have
    arrived; stems are still yielded in blocks.

    Parameters
    ----------
    model : Callable[[Tensor], Tensor]
        As in `separate`.
    blocks : Iterable[Tensor]
        Floating-point audio, each `(s, t)` or `(t,)` with any number of samples, including none; all with the same
        channels, dtype and device. Blocks are not changed, and must not change while they are needed.
    length : int | None, default None
        Samples to expect, only for `progress`: the song ends where the blocks end.
    progress : bool | Progress, default False
        As in `separate`. Without `length` the number of all chunks is that of those known so far.
    **keywords : Unpack[KeywordsSeparation]
        The fields of `ParametersSeparation`.

    Yields
    ------
    stems : Tensor
        `(n, s, t)`: the next samples of all stems, as soon as no later chunk can change them.

    Raises
    ------
    TypeError, ValueError, RuntimeError, torch.OutOfMemoryError
        As `separate`, at the first block or at the block that is invalid. Exceptions of `blocks` propagate.
    """
    parameters = ParametersSeparation(**keywords)
    yield from stems_of(model, iter_blocks(blocks), parameters, length=length, progress=progress)


def iter_blocks(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Return an iterator over blocks; refuse a single tensor, whose channels would be taken for blocks."""
    if isinstance(blocks, Tensor):
        message = (
            f"`blocks` must be an iterable of tensors: received one tensor of shape {tuple(blocks.shape)}. Pass it in "
            "a list, or use `separate`."
        )
        raise TypeError(message)
    return iter(blocks)


def stems_of(
    model: Callable[[Tensor], Tensor],
    blocks: Iterator[Tensor],
    parameters: ParametersSeparation,
    *,
    what: str = "block",
    length: int | None = None,
    progress: bool | Progress = False,
) -> Generator[Tensor]:
    """Separate a stream with a record of settings; messages call a block `what`. See `separate_stream`."""
    _check_window(model, parameters.chunk_size)
    song = _Song(blocks, what, getattr(model, "stereo", None))
    run = Estimator(model, parameters, each_channel=song.each_channel, dtype_song=song.dtype, device_song=song.device)
    chunks = partial(KINDS_OF_CHUNKS[parameters.blend], parameters, run.dtype_audio, song.device)
    if parameters.shifts > 1:
        yield from _shifted(run, chunks, torch.cat(list(song.blocks), dim=-1), parameters, progress)
        return
    start, end = parameters.start, parameters.stop
    total = None if length is None else chunks().number(length, start, end)
    with _progress_reporter(progress, total) as report:
        yield from _overlap_added(run, chunks(), song.blocks, length, start, end, report)


def _shifted(
    run: Estimator,
    chunks: Callable[[], Chunks],
    mixture: Tensor,
    parameters: ParametersSeparation,
    progress: bool | Progress,
) -> Generator[Tensor]:
    """Yield stems averaged over rotations of the song in time."""
    length = mixture.shape[-1]
    _check_start(parameters.start, length)
    end = int(min(parameters.stop, length))
    shifts = [number * (length // parameters.shifts) for number in range(parameters.shifts)]
    # Where the part lies in the rotated song: in two pieces if the seam lies within it.
    pieces = [
        [
            (max(0, parameters.start + moved), min(length, end + moved))
            for moved in (shift, shift - length)
            if parameters.start + moved < length and end + moved > 0
        ]
        for shift in shifts
    ]
    total = sum(chunks().number(length, *piece) for each in pieces for piece in each)
    with _progress_reporter(progress, total) as report:
        numbers = itertools.count(1)

        def passed(shift: int, each: list[tuple[int, int]]) -> Generator[Tensor]:
            for start, end in each:
                blocks = iter([mixture[:, length - shift :], mixture[:, : length - shift]])
                yield from _overlap_added(
                    run, chunks(), blocks, length, start, end, lambda _done, _total: report(next(numbers), total)
                )

        for stems in aligned(list(map(passed, shifts, pieces))):
            with torch.inference_mode(mode=False), torch.no_grad():
                mean = torch.stack(stems).mean(dim=0)
            yield mean


def _overlap_added(
    run: Estimator,
    chunks: Chunks,
    blocks: Iterator[Tensor],
    length: int | None,
    start: int,
    end: float,
    report: Progress,
) -> Generator[Tensor]:
    """Yield the samples from `start` to before `end` of all stems of a song of about this length."""
    blocks, border = chunks.continued(blocks)
    stream = Stream(blocks)
    overlapAdd = OverlapAdd(chunks, start + border, end + border)
    first = index = chunks.first(start + border)
    while True:
        while not chunks.is_settled(index + run.batch_size - 1, stream.received):
            stream.forget(chunks.least(index, stream.received))
            if not stream.read():
                chunks.length = stream.received
                length = stream.received - 2 * border
                _check_start(start, length)
                overlapAdd.end = min(end, length) + border
        size = min(run.batch_size, chunks.count(stream.received, overlapAdd.end) - index)
        for estimate in run.estimates(chunks, index, size, stream):
            final = overlapAdd.add(index, estimate)
            del estimate  # Otherwise the memory of a batch would still be in use at the next call of the model.
            index += 1
            known = 0 if chunks.length is not None else stream.received - 2 * border
            report(index - first, max(index - first, chunks.number(max(known, length or 0), start, end)))
            if final.shape[-1]:
                yield final
            del final
        if chunks.count(stream.received, overlapAdd.end) <= index:
            return


class _Song:
    """Checked blocks, with the channels that the model takes."""

    def __init__(self, blocks: Iterator[Tensor], what: str, stereo: object) -> None:
        self._what = what
        block = next(blocks, None)
        if block is None:
            raise ValueError("`blocks` has no block: pass at least one, with at least one sample.")
        block = self._checked(block, 0)
        self.dtype, self.device = block.dtype, block.device
        self._channels = block.shape[0]
        self.each_channel = stereo is not None and not stereo and block.shape[0] == 2
        self._expand = bool(stereo) and block.shape[0] == 1
        if stereo is not None and not self._expand and not self.each_channel:
            _check_channels(block.shape[0], 2 if stereo else 1)
        self.blocks = self._matching(chain([block], blocks))

    def _matching(self, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield blocks with the channels that the model takes; raise if there is no sample at all."""
        received = 0
        for given in blocks:
            block = self._checked(given, received)
            if (block.shape[0], block.dtype, block.device) != (self._channels, self.dtype, self.device):
                raise ValueError(
                    f"the block at sample {received} has {block.shape[0]} channels of {block.dtype} on "
                    f"{block.device}, those before it {self._channels} of {self.dtype} on {self.device}: make all "
                    "alike."
                )
            received += block.shape[-1]
            yield block.expand(2, -1) if self._expand else block
            del given, block
        if not received:
            raise ValueError("`blocks` has no samples: pass blocks of which at least one is not empty.")

    def _checked(self, block: object, received: int) -> Tensor:
        """Return a block as `(s, t)`."""
        checked = _check_audio(block, self._what, received)
        return (checked[None] if checked.ndim == 1 else checked).detach()


def _check_start(start: int, length: int) -> None:
    if start >= length:
        raise ValueError(f"`start` must be before the end of the song, {length} samples: received {start}.")


def _check_window(model: object, chunk_size: int) -> None:
    """Raise if a chunk does not fill one window of the model's transform."""
    whole = model_within(model)
    if whole is not None and chunk_size < (window := whole.configuration["stft_win_length"]):
        raise ValueError(
            f"`chunk_size` must hold at least one window of the model's transform, {window} samples: received "
            f"{chunk_size}. What the model was trained on is best, usually some 8 seconds."
        )


def _check_audio(audio: object, what: str, offset: int) -> Tensor:
    """Return audio if it is finite, floating-point and has one or two axes; otherwise raise."""
    if not isinstance(audio, Tensor):
        message = f"`{what}` must be a tensor: received {type(audio).__name__}. torch.from_numpy converts an array."
        raise TypeError(message)
    if not audio.is_floating_point():
        message = (
            f"`{what}` must be floating-point audio: received {audio.dtype}. "
            f"Scale integers to -1 ... 1, 16-bit ones with `{what} / 32768`."
        )
        raise TypeError(message)
    may_be_empty = what == "block" and audio.ndim in (1, 2) and audio.shape[0] > 0
    if audio.ndim not in (1, 2) or (audio.numel() == 0 and not may_be_empty):
        message = (
            f"`{what}` must be (s, t) or (t,) and not empty: received shape {tuple(audio.shape)}. "
            "Separate the songs of a batch one by one."
        )
        raise ValueError(message)
    if audio.numel() and not is_finite(audio):
        bad = ~torch.isfinite(audio.reshape(-1, audio.shape[-1])).all(dim=0)
        message = (
            f"`{what}` must be finite: received NaN or infinity at {int(bad.sum())} samples, the first at index "
            f"{offset + int(bad.nonzero()[0])}. Repair or cut out those samples."
        )
        raise ValueError(message)
    return audio


def _check_channels(channels: int, expected: int) -> None:
    if channels == expected:
        return
    message = (
        f"the model takes {expected} channel(s) (stereo={expected == 2}): received {channels}. Mix them down, and "
        "transpose audio of shape (t, s)."
    )
    raise ValueError(message)


@contextmanager
def _progress_reporter(progress: bool | Progress, total: int | None) -> Generator[Progress]:
    """Provide the function to call with the number of chunks done and of all chunks."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda _done, _total: None
    else:
        try:
            from tqdm import tqdm
        except ImportError as error:
            message = f"a progress bar needs tqdm: {how_to_install('separation')}, or pass `progress=False`."
            raise ImportError(message) from error
        with tqdm(total=total, unit="chunk") as bar:
            yield lambda _done, _total: bar.update(1)
