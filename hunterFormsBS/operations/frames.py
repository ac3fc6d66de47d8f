"""Frames of a signal, as a short-time Fourier transform takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hunterFormsBS.theTypes import ParametersComputeLoss

# torch.fft has no annotations.
rfft = cast("Callable[..., Tensor]", torch.fft.rfft)  # pyright: ignore[reportUnknownMemberType]
irfft = cast("Callable[..., Tensor]", torch.fft.irfft)  # pyright: ignore[reportUnknownMemberType]


def padded_for_stft(audio: Tensor, stft_n_fft: int) -> Tensor:
    """Append silence to audio, `(..., t)`, too short for reflection at its ends, until t > stft_n_fft / 2."""
    return F.pad(audio, (0, max(0, stft_n_fft // 2 + 1 - audio.shape[-1])))


def frames_and_window(rows: Tensor, window_size: int, parameters: ParametersComputeLoss) -> tuple[Tensor, Tensor]:
    """Return the frames, `(rows, frame, n_fft)`, and the centred window, `(n_fft)`, as `torch.stft` uses them."""
    n_fft = max(window_size, parameters.stft_n_fft)
    rows = padded_for_stft(rows, n_fft)
    rows = F.pad(rows[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
    window = parameters.multi_stft_window_fn(window_size, device=rows.device, dtype=rows.dtype)
    before = (n_fft - window_size) // 2
    window = F.pad(window, (before, n_fft - window_size - before))
    if parameters.multi_stft_normalized:
        window = window * n_fft**-0.5
    return rows.unfold(-1, n_fft, parameters.multi_stft_hop_size), window


def spectral_moduli(rows: Tensor, parameters: ParametersComputeLoss) -> Tensor:
    """Return the sum, over window sizes, of the mean modulus of the STFT of `rows`, `(rows, t)`."""
    windowed = (frames_and_window(rows, size, parameters) for size in parameters.multi_stft_resolutions_window_sizes)
    return torch.stack([rfft(frames * window).abs().mean() for frames, window in windowed]).sum()
