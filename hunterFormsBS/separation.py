"""Separate songs of any length with a model that takes chunks: overlap-add of weighted chunks.

The song stays where it is, usually in host memory; the device sees one batch of chunks at a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hunterFormsBS.installation import how_to_install

__all__ = ["separate"]

_MARKS_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def separate(
    model: Callable[[Tensor], Tensor],
    mixture: Tensor,
    *,
    chunk_size: int = 352800,
    num_overlap: int = 2,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Tensor:
    """Separate a whole song into stems.

    Chunks begin every `chunk_size // num_overlap` samples. The last one is moved back to end with the song, so that
    every chunk is full of music. Where chunks overlap, their estimates are averaged with weights that rise and fall
    as squared sines and sum to one at every sample.

    A song shorter than one chunk is continued by its mirror image, then by silence: the model gets the length that it
    was trained on, a compiled model sees one shape, and the end of the song is no click. For many short clips a
    smaller `chunk_size` costs less.

    Parameters
    ----------
    model : Callable[[Tensor], Tensor]
        Takes `(b, s, t)`, returns `(b, n, s, t)`. Of its attributes only `stereo` is read; without it the channels
        pass as they are. A module runs in eval mode and gets its training flags back afterwards.
    mixture : Tensor
        Floating-point audio, `(s, t)`, or `(t,)` for mono.
    chunk_size : int = 352800
        Samples that the model sees at a time.
    num_overlap : int = 2
        How many chunks cover a sample away from the ends of the song. With 1 the chunks abut.
    batch_size : int = 1
        Chunks in one call of the model. It is halved, with a warning, when the device is out of memory.
    device : torch.device | str | None = None
        Where the model runs. A module is moved there and stays there. `None`: where the module's parameters are; the
        mixture's device when it has none.
    dtype : torch.dtype | None = None
        `torch.bfloat16` or `torch.float16`: run under autocast to it, the weights staying as they are.
        `torch.float32`: run without autocast. `None`: autocast as it is around the call.
    progress : bool | Callable[[int, int], None] = False
        `True` shows a progress bar; a callable gets the number of chunks done and the number of all chunks.

    Returns
    -------
    stems : Tensor
        `(n, s, t)` on the mixture's device, as long as the mixture; mono into a stereo model gives two channels.
        It is float32, or float64 where both the mixture and the model are.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be used.
    RuntimeError
        If the model returns another shape or values that are not finite.
    torch.OutOfMemoryError
        If not even one chunk fits the device.
    """
    for name, value in (("chunk_size", chunk_size), ("num_overlap", num_overlap), ("batch_size", batch_size)):
        _check_positive_integer(name, value)
    if num_overlap > chunk_size:
        message = (
            f"`num_overlap` must not exceed `chunk_size`: received {num_overlap} and {chunk_size}. "
            "Use fewer overlaps or longer chunks."
        )
        raise ValueError(message)
    _check_mixture(mixture)
    if mixture.ndim == 1:
        mixture = mixture[None]  # (t) -> (s, t)
    mixture = _match_channels(mixture.detach(), getattr(model, "stereo", None))

    reference = _reference_tensor(model)
    if device is None:
        device = mixture.device if reference is None else reference.device
    elif isinstance(model, nn.Module):
        model.to(device)
    device = torch.device(device)
    double = mixture.dtype == torch.float64 and (reference is None or reference.dtype == torch.float64)
    dtype_audio = torch.float64 if double else torch.float32
    autocast = _autocast(device, dtype)
    dtype_computation = dtype or _dtype_computation(device, reference, dtype_audio)

    chunks = _Chunks(mixture, chunk_size, chunk_size // num_overlap, dtype_audio)
    stems = torch.empty(0)
    with _progress_reporter(progress, len(chunks)) as report, _evaluation_mode(model), torch.inference_mode(), autocast:
        for index, estimate in _estimates(model, chunks, batch_size, device):
            if not _is_finite(estimate):
                raise RuntimeError(_not_finite(chunks, index, dtype_computation))
            if index == 0:
                # What inference mode allocates cannot take part in a backward pass afterwards.
                with torch.inference_mode(mode=False):
                    stems = mixture.new_zeros((estimate.shape[0], *mixture.shape), dtype=dtype_audio)
            start, stop = chunks.span(index)
            stems[..., start:stop].addcmul_(estimate[..., : stop - start], chunks.weights(index)[: stop - start])
            del estimate  # Or the next call of the model would find the memory of a batch still in use.
            report(index + 1, len(chunks))
    return stems


class _Window(NamedTuple):
    """Place and shape of a chunk's window: first sample, and how many samples it rises and falls."""

    start: int
    rise: int
    fall: int


class _Chunks:
    """The chunks of a mixture `(s, t)`, one every `step` samples: where they lie, their audio, their weights."""

    def __init__(self, mixture: Tensor, chunk_size: int, step: int, dtype: torch.dtype) -> None:
        self.mixture = mixture
        self.chunk_size = chunk_size
        self.dtype = dtype
        self.reach = math.ceil(chunk_size / step)
        self.length = mixture.shape[-1]
        last = max(0, self.length - chunk_size)
        starts = [*range(0, last, step), last]
        # A window rises over what the chunk shares with the one before it, and falls likewise, each within its half.
        # At the ends of the song, and where chunks abut, it is flat.
        half = chunk_size // 2
        fades = [min(half, max(0, before + chunk_size - start)) for before, start in pairwise(starts)]
        self.windows = [
            _Window(start, rise, fall) for start, rise, fall in zip(starts, [0, *fades], [*fades, 0], strict=True)
        ]
        self._shape = cache(partial(_squared_sines, chunk_size))
        self._weights: dict[tuple[_Window, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def span(self, index: int) -> tuple[int, int]:
        """Return the first sample of the song in a chunk and the one after its last."""
        start = self.windows[index].start
        return start, min(self.length, start + self.chunk_size)

    def batch(self, first: int, size: int, device: torch.device) -> Tensor:
        """Copy chunks `first` to `first + size - 1` to the device as one batch `(b, s, t)`."""
        audio = torch.empty((size, self.mixture.shape[0], self.chunk_size), dtype=self.dtype, device=device)
        for offset, chunk in enumerate(audio):
            start, stop = self.span(first + offset)
            music = stop - start
            chunk[:, :music].copy_(self.mixture[:, start:stop])
            if music < self.chunk_size:
                mirrored = min(music - 1, self.chunk_size - music)
                chunk[:, music : music + mirrored].copy_(self.mixture[:, stop - 1 - mirrored : stop - 1].flip(-1))
                chunk[:, music + mirrored :].zero_()
        return audio

    def weights(self, index: int) -> Tensor:
        """Return a chunk's window divided by the sum of all windows that overlap it: `(t)`.

        Away from the ends of a song the chunks lie alike and share one tensor.
        """
        start = self.windows[index].start
        near = self.windows[max(0, index - self.reach) : index + self.reach + 1]
        geometry = tuple(
            window._replace(start=window.start - start)
            for window in near
            if abs(window.start - start) < self.chunk_size
        )
        if geometry not in self._weights:
            total = torch.zeros(self.chunk_size, dtype=torch.float64)
            for offset, rise, fall in geometry:
                target = slice(max(0, offset), self.chunk_size + min(0, offset))
                source = slice(max(0, -offset), self.chunk_size - max(0, offset))
                total[target] += self._shape(rise, fall)[source]
            own = self._shape(self.windows[index].rise, self.windows[index].fall)
            self._weights[geometry] = (own / total).to(self.dtype).to(self.mixture.device)
        return self._weights[geometry]


def _squared_sines(size: int, rise: int, fall: int) -> Tensor:
    """Return `(t)`: a squared sine that rises, ones, and one that falls, none of which reaches zero."""
    window = torch.ones(size, dtype=torch.float64)
    for length, place in ((rise, window[:rise]), (fall, window[size - fall :])):
        angle = torch.linspace(0.5, length - 0.5, length, dtype=torch.float64) * (math.pi / 2 / max(1, length))
        place.copy_(angle.sin().square())
    window[size - fall :] = window[size - fall :].flip(-1)
    return window


def _estimates(
    model: Callable[[Tensor], Tensor], chunks: _Chunks, batch_size: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of each chunk and its estimate `(n, s, t)`, on the mixture's device and in the chunks' dtype."""
    index = 0
    num_stems: int | None = None
    while index < len(chunks):
        size = min(batch_size, len(chunks) - index)
        estimates = _call_model(model, chunks, index, size, device)
        if estimates is None:
            batch_size = size // 2
            message = (
                f"out of memory on {device} with {size} chunks of {chunks.chunk_size} samples at a time: "
                f"continuing with `batch_size` {batch_size}."
            )
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            continue
        _check_estimates(estimates, size, num_stems, chunks)
        num_stems = estimates.shape[1]
        for offset in range(size):
            yield index + offset, estimates[offset].to(chunks.mixture.device, chunks.dtype)
        del estimates
        index += size


def _call_model(
    model: Callable[[Tensor], Tensor], chunks: _Chunks, index: int, size: int, device: torch.device
) -> Tensor | None:
    """Return the estimates of a batch, or None if it did not fit the device but a smaller one might."""
    try:
        return model(chunks.batch(index, size, device))
    except (MemoryError, RuntimeError) as error:
        explicit = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not explicit and not any(mark in str(error).lower() for mark in _MARKS_OUT_OF_MEMORY):
            raise
        if size == 1:
            message = (
                f"out of memory on {device} with a single chunk of {chunks.chunk_size} samples: "
                "use a smaller `chunk_size`, `dtype=torch.bfloat16` or another `device`."
            )
            raise torch.OutOfMemoryError(message) from error
    # Leaving the except clause has freed what the failed call held.
    return None


def _check_estimates(estimates: object, size: int, num_stems: int | None, chunks: _Chunks) -> None:
    """Raise if the model returned anything but floating-point `(b, n, s, t)` with the sizes of its input."""
    received = type(estimates).__name__
    if isinstance(estimates, Tensor):
        shape = estimates.shape
        fits = shape[:1] == (size,) and shape[2:] == (chunks.mixture.shape[0], chunks.chunk_size)
        if estimates.is_floating_point() and fits and 0 < shape[1] == (num_stems or shape[1]):
            return
        received = f"{estimates.dtype} {tuple(shape)}"
    message = (
        f"the model must return floating-point (b, n, s, t) = ({size}, {num_stems or 'n'}, {chunks.mixture.shape[0]}, "
        f"{chunks.chunk_size}): received {received}. Give a model of one stem a stem axis, and make `chunk_size` a "
        "multiple of the hop length of a model that does not match the length of its input."
    )
    raise RuntimeError(message)


def _check_positive_integer(name: str, value: object) -> None:
    """Raise unless the value is an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"`{name}` must be an integer: received {value!r}."
        raise TypeError(message)
    if value < 1:
        message = f"`{name}` must be at least 1: received {value}."
        raise ValueError(message)


def _check_mixture(mixture: object) -> None:
    """Raise unless the mixture is finite floating-point audio of one or two axes."""
    if not isinstance(mixture, Tensor):
        message = f"`mixture` must be a tensor: received {type(mixture).__name__}. torch.from_numpy converts an array."
        raise TypeError(message)
    if not mixture.is_floating_point():
        message = (
            f"`mixture` must be floating-point audio: received {mixture.dtype}. "
            "Scale integers to -1 ... 1, 16-bit ones with `mixture / 32768`."
        )
        raise TypeError(message)
    if mixture.ndim not in (1, 2) or mixture.numel() == 0:
        message = (
            f"`mixture` must be (s, t) or (t,) and not empty: received shape {tuple(mixture.shape)}. "
            "Separate the songs of a batch one by one."
        )
        raise ValueError(message)
    if not _is_finite(mixture):
        bad = ~torch.isfinite(mixture.reshape(-1, mixture.shape[-1])).all(dim=0)
        message = (
            f"`mixture` must be finite: received NaN or infinity at {int(bad.sum())} samples, the first at index "
            f"{int(bad.nonzero()[0])}. Repair or cut out those samples."
        )
        raise ValueError(message)


def _is_finite(audio: Tensor) -> bool:
    """Tell whether all values are finite, without a temporary tensor of the audio's size."""
    low, high = torch.aminmax(audio)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _match_channels(mixture: Tensor, stereo: object) -> Tensor:
    """Return the mixture `(s, t)` with the channels that a model with this `stereo` takes; None takes any."""
    channels = mixture.shape[0]
    if stereo is None:
        return mixture
    if stereo and channels == 1:
        return mixture.expand(2, -1)
    expected = 2 if stereo else 1
    if channels == expected:
        return mixture
    if channels == 2:
        remedy = "Pass `mixture.mean(dim=0)`, or separate each channel by itself."
    else:
        remedy = "Mix them down, and transpose audio of shape (t, s)."
    message = f"the model takes {expected} channel(s) (stereo={bool(stereo)}): received {channels}. {remedy}"
    raise ValueError(message)


def _reference_tensor(model: object) -> Tensor | None:
    """Return the first floating-point parameter or buffer of a model, if it has one."""
    if not isinstance(model, nn.Module):
        return None
    return next((tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point()), None)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return the context in which to run the model in this dtype."""
    if dtype is None:
        return nullcontext()
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    if dtype not in (torch.bfloat16, torch.float16):
        message = f"`dtype` must be torch.float32, torch.bfloat16, torch.float16 or None: received {dtype!r}."
        raise ValueError(message)
    return torch.autocast(device.type, dtype=dtype)


def _dtype_computation(device: torch.device, reference: Tensor | None, dtype_audio: torch.dtype) -> torch.dtype:
    """Return the dtype in which a model computes when the caller asks for none."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype_audio if reference is None else reference.dtype


def _not_finite(chunks: _Chunks, index: int, dtype: torch.dtype) -> str:
    """Say which estimate is not finite and what to do about it."""
    start, stop = chunks.span(index)
    remedy = "Look for NaN in the weights." if dtype.itemsize > 2 else "Run in float32."
    return (
        f"the model returned NaN or infinity for chunk {index} of {len(chunks)}, counted from 0 "
        f"(samples {start} to {stop - 1}), computing in {dtype}. {remedy}"
    )


@contextmanager
def _evaluation_mode(model: object) -> Generator[None]:
    """Put a module in eval mode, and every submodule back as it was."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _progress_reporter(
    progress: bool | Callable[[int, int], None], total: int
) -> Generator[Callable[[int, int], object]]:
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
