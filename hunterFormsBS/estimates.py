"""Estimates of chunks: how a model is called, and checks of what it returns."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.devices import unusable
from hunterFormsBS.kernels.int8 import Use, in_int8
from hunterFormsBS.kernels.internals import multiplies_bfloat16
from hunterFormsBS.overlapAdd import Chunks, Stream
from hunterFormsBS.parametersSeparation import ParametersSeparation
from hunterFormsBS.printable import short_repr

__all__ = ["Estimator", "is_finite", "model_within"]

_MARKS_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


class Estimator:
    """A model on its device, and how it is called."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        parameters: ParametersSeparation,
        *,
        each_channel: bool,
        dtype_song: torch.dtype,
        device_song: torch.device,
    ) -> None:
        reference = _reference_tensor(model)
        asked, dtype = parameters.device, parameters.dtype
        device = (device_song if reference is None else reference.device) if asked is None else asked
        if asked is not None and (reason := unusable(asked)) is not None:
            raise ValueError(f"`device={short_repr(str(asked))}` cannot be used here: {reason}")
        if dtype == torch.int8 and torch.device(device).type != "cpu":
            raise ValueError(
                f"`dtype=torch.int8` computes on a CPU only: received the device {short_repr(str(device))}. Use "
                "torch.bfloat16 or torch.float16 there, or `device='cpu'`."
            )
        if asked is not None and isinstance(model, nn.Module):
            model.to(asked)
        self.model = model
        self.batch_size = parameters.batch_size
        self.device = torch.device(device)
        self.dtype = dtype
        self.tta = parameters.tta
        self.each_channel = each_channel
        double = dtype_song == torch.float64 and (reference is None or reference.dtype == torch.float64)
        self.dtype_audio = torch.float64 if double else torch.float32
        with _autocast(self.device, dtype):
            self.dtype_computation = dtype or _dtype_computation(self.device, reference, self.dtype_audio)
        if self.dtype_computation == torch.bfloat16 and self.device.type == "cpu" and not multiplies_bfloat16():
            _warn_caller(
                "this processor has no instructions for bfloat16 (AVX512_BF16 or AMX), so float32 is faster on it."
            )
        self._ran = self._warned_of_float32 = False
        whole = model_within(model)
        # Masks scale the mixture's spectrum: zeros in, zeros out.
        self._silent_in_silence = whole is not None
        self._num_stems: int | None = None if whole is None else whole.configuration["num_stems"]

    def estimates(self, chunks: Chunks, index: int, size: int, stream: Stream) -> Iterator[Tensor]:
        """Yield the estimates `(n, s, t)` of chunks one by one, on the song's device and in the chunks' dtype."""
        while size:
            count = min(size, self.batch_size)
            estimates = self._try(chunks, index, count, stream)
            if estimates is None:
                self.batch_size = count // 2
                _warn_caller(
                    f"out of memory on {self.device} with {count} chunks of {chunks.chunk_size} samples at a time: "
                    f"continuing with `batch_size` {self.batch_size}."
                )
                continue
            for offset in range(count):
                estimate = estimates[offset].to(chunks.device, chunks.dtype)
                if not is_finite(estimate):
                    raise RuntimeError(_not_finite(chunks, index + offset, self.dtype_computation))
                yield estimate
                del estimate
            del estimates
            index += count
            size -= count

    def _try(self, chunks: Chunks, index: int, size: int, stream: Stream) -> Tensor | None:
        """Return the estimates of a batch; None if it did not fit the device but a smaller one might."""
        try:
            channels = stream.channels
            audio = torch.empty((size, channels, chunks.samples), dtype=chunks.dtype, device=self.device)
            for offset, chunk in enumerate(audio):
                chunks.audio(index + offset, stream, chunk)
            with ExitStack() as contexts:
                contexts.enter_context(_evaluation_mode(self.model))
                contexts.enter_context(torch.inference_mode())
                contexts.enter_context(_autocast(self.device, self.dtype))
                use = contexts.enter_context(in_int8()) if self.dtype == torch.int8 else None
                estimates = self._estimate(audio)
                self._warn_unless_used(use)
                return estimates
        except (MemoryError, RuntimeError) as error:
            explicit = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not explicit and not any(mark in str(error).lower() for mark in _MARKS_OUT_OF_MEMORY):
                raise
            if size == 1:
                message = (
                    f"out of memory on {self.device} with a single chunk of {chunks.chunk_size} samples: "
                    "use a smaller `chunk_size`, `dtype=torch.bfloat16` or another `device`."
                )
                raise torch.OutOfMemoryError(message) from error
        # Leaving the except clause has freed what the failed call held.
        return None

    def _warn_unless_used(self, use: Use | None) -> None:
        """Warn once if int8 was requested but everything was computed in float32."""
        if use is not None and not use.weights and self._ran and not self._warned_of_float32:
            self._warned_of_float32 = True
            _warn_caller(
                "nothing was computed in int8: it needs a processor with AVX2, kernels that are not turned off, and a "
                "BandSplitRotator with float32 weights that is neither compiled nor modified. The stems are those of "
                "float32."
            )

    def _estimate(self, audio: Tensor) -> Tensor:
        """Return `(b, n, s, t)` for `(b, s, t)`."""
        if not self._silent_in_silence:
            return self._augmented(audio)
        loud = audio.flatten(1).any(dim=1)
        if bool(loud.all()):
            return self._augmented(audio)
        estimates = audio.new_zeros((len(audio), cast(int, self._num_stems), *audio.shape[1:]))
        if bool(loud.any()):
            estimates[loud] = self._augmented(audio[loud]).to(audio.dtype)
        return estimates

    def _augmented(self, audio: Tensor) -> Tensor:
        if not self.tta:
            return self._called(audio)
        total = self._called(audio) - self._called(-audio)
        if audio.shape[1] != 2:
            return total / 2
        return (total + self._called(audio.flip(1)).flip(2)) / 3

    def _called(self, audio: Tensor) -> Tensor:
        channels = audio.shape[1]
        if self.each_channel:
            audio = audio.reshape(-1, 1, audio.shape[-1])
        size = tuple(audio.shape)
        estimates: object = self.model(audio)
        self._ran = True
        checked = _check_estimates(estimates, size, self._num_stems)
        self._num_stems = checked.shape[1]
        return rearrange(checked, "(b c) n s t -> b n (c s) t", c=channels) if self.each_channel else checked


def _warn_caller(message: str) -> None:
    """Warn at the caller of the package: the number of generators in between varies."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("hunterFormsBS."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)


def model_within(model: object) -> BandSplitRotator | None:
    """Return the model of this package, unwrapped from `torch.compile`."""
    inside = getattr(model, "_orig_mod", model)
    return inside if isinstance(inside, BandSplitRotator) else None


def is_finite(audio: Tensor) -> bool:
    """Tell whether all values are finite, without a temporary tensor of the audio's size."""
    low, high = torch.aminmax(audio)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _check_estimates(estimates: object, size: tuple[int, ...], num_stems: int | None) -> Tensor:
    """Raise unless the model returned floating-point `(b, n, s, t)` for its input `(b, s, t)`."""
    received = type(estimates).__name__
    if isinstance(estimates, Tensor):
        shape = estimates.shape
        fits = shape[:1] == size[:1] and shape[2:] == size[1:]
        if estimates.is_floating_point() and fits and 0 < shape[1] == (num_stems or shape[1]):
            return estimates
        received = f"{estimates.dtype} {tuple(shape)}"
    message = (
        f"the model must return floating-point (b, n, s, t) = ({size[0]}, {num_stems or 'n'}, {size[1]}, {size[2]}): "
        f"received {received}. Give a model of one stem a stem axis, and make `chunk_size` a multiple of the hop "
        "length of a model that does not match the length of its input."
    )
    raise RuntimeError(message)


def _reference_tensor(model: object) -> Tensor | None:
    """Return the first floating-point parameter or buffer of a model, if it has one."""
    if not isinstance(model, nn.Module):
        return None
    return next((tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point()), None)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return the context in which to run the model in this dtype."""
    if dtype is None:
        return nullcontext()
    if dtype in (torch.float32, torch.int8):
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


def _dtype_computation(device: torch.device, reference: Tensor | None, dtype_audio: torch.dtype) -> torch.dtype:
    """Return the dtype in which a model computes by default."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype_audio if reference is None else reference.dtype


def _not_finite(chunks: Chunks, index: int, dtype: torch.dtype) -> str:
    """Return a message: which estimate is not finite, and what to do."""
    start, stop = chunks.span(index)
    total = "" if chunks.length is None else f" of {chunks.count(chunks.length)}"
    remedy = "Look for NaN in the weights." if dtype.itemsize > 2 else "Run in float32."
    return (
        f"the model returned NaN or infinity for chunk {index}{total}, counted from 0 "
        f"(samples {start} to {stop - 1}), computing in {dtype}. {remedy}"
    )


@contextmanager
def _evaluation_mode(model: object) -> Generator[None]:
    """Put a module in eval mode, and restore every submodule afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
