"""The short-time Fourier transform and its inverse, in float32 or better, on spectra as real pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hunterFormsBS.blocks.norm import at_least_float32
from hunterFormsBS.theTypes import ParametersSTFT

# torch.istft has no annotations.
istft = cast("Callable[..., Tensor]", torch.istft)  # pyright: ignore[reportUnknownMemberType]


def lacks_fft(device: torch.device) -> bool:
    """Tell whether `device` is an MPS device of a system older than macOS 14, the first with FFT kernels."""
    return device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0)


def padded_for_stft(audio: Tensor, stft_n_fft: int) -> Tensor:
    """Append silence to audio, `(..., t)`, too short for reflection at its ends: t > stft_n_fft / 2 afterwards."""
    return F.pad(audio, (0, max(0, stft_n_fft // 2 + 1 - audio.shape[-1])))


class SpectralTransform:
    """Audio to spectrum and back, with frames centred and audio reflected at its ends.

    Parameters
    ----------
    stft_n_fft, stft_hop_length, stft_win_length : int
        Samples in a frame, between frames, and in the window, which is centred in the frame.
    stft_normalized : bool
        Scale by `stft_n_fft ** -0.5`.
    stft_window_fn : Callable
        Makes the window from its length.
    """

    def __init__(self, **parameters: Unpack[ParametersSTFT]) -> None:
        self.parameters = parameters

    def forward(self, audio: Tensor) -> Tensor:
        """Transform audio `(..., t)` to `(..., f, t, c)`."""
        audio = padded_for_stft(audio.to(at_least_float32(audio.dtype)), self.parameters["stft_n_fft"])
        device = audio.device
        if lacks_fft(device):
            audio = audio.cpu()
        rows = audio.reshape(-1, audio.shape[-1])
        spectrum = torch.stft(
            rows,
            self.parameters["stft_n_fft"],
            self.parameters["stft_hop_length"],
            self.parameters["stft_win_length"],
            self._window(audio),
            normalized=self.parameters["stft_normalized"],
            return_complex=True,
        )
        return torch.view_as_real(spectrum.reshape(*audio.shape[:-1], *spectrum.shape[1:])).to(device)

    def inverse(self, spectrum: Tensor, length: int | None = None) -> Tensor:
        """Transform a spectrum `(..., f, t, c)` to audio `(..., t)`.

        Parameters
        ----------
        spectrum : Tensor
            Real and imaginary parts.
        length : int, optional
            Samples to return; the frames decide by default, which is at most one hop less than was transformed.
        """
        device = spectrum.device
        spectrum = spectrum.to(at_least_float32(spectrum.dtype))
        if lacks_fft(device):
            spectrum = spectrum.cpu()
        leading = spectrum.shape[:-3]
        audio = istft(
            torch.view_as_complex(rearrange(spectrum, "... f t c -> (...) f t c")),
            self.parameters["stft_n_fft"],
            self.parameters["stft_hop_length"],
            self.parameters["stft_win_length"],
            self._window(spectrum),
            normalized=self.parameters["stft_normalized"],
            length=length,
        )
        return audio.reshape(*leading, audio.shape[-1]).to(device)

    def _window(self, like: Tensor) -> Tensor:
        make_window = self.parameters["stft_window_fn"]
        return make_window(self.parameters["stft_win_length"], device=like.device, dtype=like.dtype)
