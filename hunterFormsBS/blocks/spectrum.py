"""The short-time Fourier transform and its inverse, in float32 or better, on spectra as real pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hunterFormsBS.blocks.norm import at_least_float32
from hunterFormsBS.kernels.fft import where_there_is_fft
from hunterFormsBS.theTypes import ParametersComputeLoss, ParametersSTFT

# torch.istft has no annotations.
istft = cast("Callable[..., Tensor]", torch.istft)  # pyright: ignore[reportUnknownMemberType]


def padded_for_stft(audio: Tensor, stft_n_fft: int) -> Tensor:
    """Append silence to audio, `(..., t)`, too short for reflection at its ends: t > stft_n_fft / 2 afterwards."""
    return F.pad(audio, (0, max(0, stft_n_fft // 2 + 1 - audio.shape[-1])))


def frames_and_window(rows: Tensor, window_size: int, parameters: ParametersComputeLoss) -> tuple[Tensor, Tensor]:
    """Return what `torch.stft` would transform: frames, `(rows, frame, n_fft)`, and the window, centred, `(n_fft)`."""
    n_fft = max(window_size, parameters.stft_n_fft)
    rows = padded_for_stft(rows, n_fft)
    rows = F.pad(rows[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
    window = parameters.multi_stft_window_fn(window_size, device=rows.device, dtype=rows.dtype)
    before = (n_fft - window_size) // 2
    window = F.pad(window, (before, n_fft - window_size - before))
    if parameters.multi_stft_normalized:
        window = window * n_fft**-0.5
    return rows.unfold(-1, n_fft, parameters.multi_stft_hop_size), window


class SpectralTransform:
    """Audio to spectrum and back, with frames centred and audio reflected at its ends.

    Parameters
    ----------
    parameters : ParametersSTFT
        Frame, hop and window.
    """

    def __init__(self, parameters: ParametersSTFT = ParametersSTFT()) -> None:  # noqa: B008  # it cannot change
        self.parameters = parameters

    @where_there_is_fft
    def forward(self, audio: Tensor) -> Tensor:
        """Transform audio `(..., t)` to `(..., f, t, c)`."""
        audio = padded_for_stft(audio.to(at_least_float32(audio.dtype)), self.parameters.stft_n_fft)
        spectrum = torch.stft(
            audio.reshape(-1, audio.shape[-1]),
            self.parameters.stft_n_fft,
            self.parameters.stft_hop_length,
            self.parameters.stft_win_length,
            self._window(audio),
            normalized=self.parameters.stft_normalized,
            return_complex=True,
        )
        return torch.view_as_real(spectrum.reshape(*audio.shape[:-1], *spectrum.shape[1:]))

    @where_there_is_fft
    def inverse(self, spectrum: Tensor, length: int | None = None) -> Tensor:
        """Transform a spectrum `(..., f, t, c)` to audio `(..., t)`.

        Parameters
        ----------
        spectrum : Tensor
            Real and imaginary parts.
        length : int, optional
            Samples to return; as many as the frames hold by default, at most one hop less than was transformed.
        """
        spectrum = spectrum.to(at_least_float32(spectrum.dtype))
        audio = istft(
            torch.view_as_complex(rearrange(spectrum, "... f t c -> (...) f t c")),
            self.parameters.stft_n_fft,
            self.parameters.stft_hop_length,
            self.parameters.stft_win_length,
            self._window(spectrum),
            normalized=self.parameters.stft_normalized,
            length=length,
        )
        return audio.reshape(*spectrum.shape[:-3], audio.shape[-1])

    def _window(self, like: Tensor) -> Tensor:
        return self.parameters.stft_window_fn(self.parameters.stft_win_length, device=like.device, dtype=like.dtype)
