"""Sample rates converted, of songs in memory and of songs that come in blocks."""

from __future__ import annotations

import math
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hunterFormsBS.installation import how_to_install

__all__ = ["Resampler", "resample"]


class Resampler:
    """Convert the sample rate of audio that comes in blocks.

    Parameters
    ----------
    rate_from, rate_to : int
        Sample rates in Hz.
    """

    def __init__(self, rate_from: int, rate_to: int) -> None:
        self.rates = (rate_from, rate_to)
        self._stream: Any = None

    def __call__(self, block: Tensor, *, last: bool = False) -> Tensor:
        """Return the samples that are ready, `(s, t')`, after a block `(s, t)`; after the last one all."""
        if self.rates[0] == self.rates[1]:
            return block
        if self._stream is None:
            self._stream = _soxr().ResampleStream(*self.rates, block.shape[0], dtype="float32", quality="VHQ")
        converted = self._stream.resample_chunk(_frames(block.float()), last=last)
        return torch.as_tensor(converted).reshape(-1, block.shape[0]).T.contiguous()

    def rest(self, channels: int) -> Tensor:
        """Return what is left at the end of the audio."""
        return self(torch.zeros(channels, 0), last=True)


def resample(audio: Tensor, rate_from: int, rate_to: int, length: int | None = None) -> Tensor:
    """Convert the sample rate of audio `(s, t)`.

    Parameters
    ----------
    audio : Tensor
        `(s, t)`, float32, on the CPU.
    rate_from, rate_to : int
        Sample rates in Hz.
    length : int | None = None
        Samples to return. `None`: the duration of the audio, rounded up to a whole sample.

    Returns
    -------
    resampled : Tensor
        `(s, t)`, float32.
    """
    length = math.ceil(audio.shape[-1] * rate_to / rate_from) if length is None else length
    if rate_from == rate_to and length == audio.shape[-1]:
        return audio
    if rate_from != rate_to:
        converted = _soxr().resample(_frames(audio), rate_from, rate_to, quality="VHQ")
        audio = torch.as_tensor(converted).T.contiguous()
    return torch.nn.functional.pad(audio[:, :length], (0, max(0, length - audio.shape[-1])))


def _frames(audio: Tensor) -> Any:
    """Return a copy `(t, s)`: of a single sample `contiguous` keeps strides that soxr takes for another layout."""
    return audio.T.clone(memory_format=torch.contiguous_format).numpy()


def _soxr() -> ModuleType:
    try:
        return import_module("soxr")
    except ImportError as error:
        raise ImportError(f"to convert sample rates, install soxr: {how_to_install('separation')}") from error
