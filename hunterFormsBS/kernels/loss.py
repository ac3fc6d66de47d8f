"""The spectral term of the loss, computed together with its gradient, so that no spectrum is stored."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from hunterFormsBS.kernels.derivatives import current_autocast, gradients_of
from hunterFormsBS.kernels.seam import Where, kernel
from hunterFormsBS.operations.frames import frames_and_window, irfft, rfft, spectral_moduli
from hunterFormsBS.theTypes import ParametersComputeLoss


@kernel(Where.EAGER)
def spectral_l1_with_gradient(rows: Tensor, parameters: ParametersComputeLoss) -> Tensor | None:
    """Compute `hunterFormsBS.blocks.loss.spectral_l1` and its gradient."""
    if not (rows.requires_grad and torch.is_grad_enabled()):
        return None
    return cast(Tensor, _SpectralL1.apply(rows, parameters))  # type: ignore[no-untyped-call]


class _SpectralL1(torch.autograd.Function):
    """`spectral_l1`; on a CPU signal by signal, because the spectra of all would need new memory in every step."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, parameters: ParametersComputeLoss) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total, gradient = rows.new_zeros(()), torch.zeros_like(rows)
        size = 1 if rows.is_cpu else len(rows)
        for part, grad_part in zip(torch.split(rows, size), torch.split(gradient, size), strict=True):
            for window_size in parameters.multi_stft_resolutions_window_sizes:
                term, grad = _term_and_gradient(part, window_size, parameters)
                total += term * (len(part) / len(rows))
                grad_part.add_(grad, alpha=len(part) / len(rows))
        ctx.parameters = parameters
        ctx.autocast = current_autocast(rows)
        ctx.save_for_backward(gradient, rows)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, rows = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = partial(spectral_moduli, parameters=ctx.parameters)
            return (*gradients_of(formula, (rows,), (True,), (grad_output,), ctx.autocast), None)
        return gradient * grad_output, None


def _term_and_gradient(rows: Tensor, window_size: int, parameters: ParametersComputeLoss) -> tuple[Tensor, Tensor]:
    """Return the mean modulus, and its gradient by one more real transform; autograd would need a complex one."""
    leaf = rows.detach().requires_grad_()
    with torch.enable_grad():
        frames, window = frames_and_window(leaf, window_size, parameters)
    n_fft = frames.shape[-1]
    spectrum = rfft(frames.detach() * window)
    # `abs` and a division of complex by real numbers would take six times as long.
    squares = torch.view_as_real(spectrum).square()
    modulus = (squares[..., 0] + squares[..., 1]).sqrt_()
    term = modulus.mean()
    # The gradient of a modulus is its number's direction, and zero at zero. Smaller moduli have squares that underflow.
    gain = modulus.clamp_min_(torch.finfo(modulus.dtype).tiny ** 0.5).reciprocal_()
    # The inverse transform counts bins that stand for two conjugate ones twice: all but 0 Hz and, if there is one,
    # Nyquist.
    gain[..., 1 : (n_fft + 1) // 2] /= 2
    grad_frames = irfft(spectrum.mul_(gain), n_fft, norm="forward").mul_(window / gain.numel())
    return term, torch.autograd.grad(frames, leaf, grad_frames)[0]
