"""The short-time Fourier transform and its inverse, in float32 or better, on spectra as real pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from hunterFormsBS.operations.complexNumbers import as_complex
from hunterFormsBS.operations.fft import where_there_is_fft
from hunterFormsBS.operations.frames import padded_for_stft
from hunterFormsBS.operations.norm import at_least_float32
from hunterFormsBS.theTypes import ParametersSTFT

# torch.istft has no annotations.
istft = cast("Callable[..., Tensor]", torch.istft)  # pyright: ignore[reportUnknownMemberType]


class SpectralTransform:
    """Audio to spectrum and back, with centred frames and reflection at the ends.

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
        length : int, default None
            Samples to return. None: as many as the frames hold, which is less than a hop short of the input.
        """
        spectrum = spectrum.to(at_least_float32(spectrum.dtype))
        audio = istft(
            as_complex(rearrange(spectrum, "... f t c -> (...) f t c")),
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
