"""Sample rates converted block by block, to lengths that are exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

MINIMUM, MAXIMUM = 1000, 768_000
"""Sample rates that a song may have, in Hz."""


def length_at(length: int, rate_from: int, rate_to: int) -> int:
    """Return how many samples a song has at another rate: its duration, rounded up to a whole sample."""
    return math.ceil(length * rate_to / rate_from)


def resampled(
    blocks: Iterable[Tensor], rate_from: int, rate_to: int, total: Callable[[], int] | None = None
) -> Iterator[Tensor]:
    """Convert the sample rate of a stream.

    Parameters
    ----------
    blocks : Iterable[Tensor]
        `(s, t)`, float32, on the CPU, of any lengths.
    rate_from, rate_to : int
        Sample rates in Hz.
    total : Callable[[], int] | None = None
        How many samples to return altogether; it is asked at the end. `None`: the duration of the stream, rounded up.

    Yields
    ------
    resampled : Tensor
        `(s, t)`, float32: what soxr returns for the whole song, cut off or filled with silence at its end.
    """
    received = returned = channels = 0

    def expected() -> int:
        return length_at(received, rate_from, rate_to) if total is None else total()

    convert: Callable[[Tensor, bool], Tensor] | None = None
    for block in blocks:
        if convert is None:
            convert, channels = _converter(rate_from, rate_to, block.shape[0]), block.shape[0]
        received += block.shape[-1]
        converted = convert(block, False)
        if converted.shape[-1]:
            returned += converted.shape[-1]
            yield converted
    if convert is None:
        return
    rest = convert(torch.empty(channels, 0), True)
    missing = max(0, expected() - returned)
    if missing:
        yield functional.pad(rest[:, :missing], (0, max(0, missing - rest.shape[-1])))


def _converter(rate_from: int, rate_to: int, channels: int) -> Callable[[Tensor, bool], Tensor]:
    """Return a function that takes the next block, and whether it is the last, and returns what is ready."""
    if rate_from == rate_to:
        return lambda block, _last: block
    try:
        import soxr
    except ImportError as error:
        raise ImportError('to convert sample rates, install soxr: pip install "hunterFormsBS[separation]"') from error
    stream = soxr.ResampleStream(rate_from, rate_to, channels, dtype="float32", quality="VHQ")

    def convert(block: Tensor, last: bool) -> Tensor:
        # A copy even where the strides of a single sample may stay, from which soxr concludes another layout.
        frames = block.T.clone(memory_format=torch.contiguous_format).numpy()
        return torch.as_tensor(stream.resample_chunk(frames, last=last)).T.contiguous()  # (t s) -> (s t)

    return convert
