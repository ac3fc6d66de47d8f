"""The loss: estimated and true stems compared as waveforms and as spectra at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from einops import rearrange
from torch import Tensor

from hunterFormsBS.kernels.loss import spectral_l1_with_gradient
from hunterFormsBS.kernels.seam import served_by
from hunterFormsBS.operations.fft import where_there_is_fft
from hunterFormsBS.operations.frames import spectral_moduli
from hunterFormsBS.operations.norm import at_least_float32
from hunterFormsBS.theTypes import ParametersComputeLoss


@overload
def lossComputation(
    recon_audio: Tensor,
    target: Tensor,
    stem_ids: Sequence[int],
    multi_stft: ParametersComputeLoss,
    *,
    return_loss_breakdown: Literal[False] = False,
) -> Tensor: ...


@overload
def lossComputation(
    recon_audio: Tensor,
    target: Tensor,
    stem_ids: Sequence[int],
    multi_stft: ParametersComputeLoss,
    *,
    return_loss_breakdown: Literal[True],
) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...


@overload
def lossComputation(
    recon_audio: Tensor,
    target: Tensor,
    stem_ids: Sequence[int],
    multi_stft: ParametersComputeLoss,
    *,
    return_loss_breakdown: bool,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]: ...


def lossComputation(
    recon_audio: Tensor,
    target: Tensor,
    stem_ids: Sequence[int],
    multi_stft: ParametersComputeLoss,
    *,
    return_loss_breakdown: bool = False,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the loss of estimated stems, in waveforms and in spectra at several resolutions.

    The mean absolute difference of samples, plus a weight times the sum, over window sizes, of the mean modulus of
    the difference of STFTs, with frames of at least `stft_n_fft` samples. Computed in float32 or better.

    Parameters
    ----------
    recon_audio : Tensor
        `(b, n, s, t)`.
    target : Tensor
        `(b, every stem, s, t)`; for one stem also `(b, s, t)`, and for one mono stem `(b, t)`. It may be longer than
        `recon_audio`, never shorter.
    stem_ids : sequence of int
        The stems of `target` that `recon_audio` estimates, in its order.
    multi_stft : ParametersComputeLoss
        Resolutions, weight and window.
    return_loss_breakdown : bool
        Return also both terms, the second one not weighted.

    Returns
    -------
    Tensor or (Tensor, (Tensor, Tensor))
        Scalars.
    """
    if target.ndim == 2:
        target = rearrange(target, "b t -> b 1 1 t")
    elif target.ndim == 3:
        target = rearrange(target, "b s t -> b 1 s t")
    estimate = recon_audio.to(at_least_float32(recon_audio.dtype))
    difference = estimate - target[:, list(stem_ids), :, : estimate.shape[-1]].to(estimate.dtype)
    waveform_term = difference.abs().mean()
    weight = multi_stft.multi_stft_resolution_loss_weight
    if weight == 0 and not return_loss_breakdown:
        return waveform_term

    # The transform is linear: one STFT of the difference replaces two.
    multi_stft_term = spectral_l1(difference.flatten(0, -2), multi_stft)
    loss = waveform_term + weight * multi_stft_term
    return (loss, (waveform_term, multi_stft_term)) if return_loss_breakdown else loss


@where_there_is_fft
@served_by(spectral_l1_with_gradient)
def spectral_l1(rows: Tensor, parameters: ParametersComputeLoss) -> Tensor:
    """Return the sum, over window sizes, of the mean modulus of the STFT of `rows`, `(rows, t)`."""
    return spectral_moduli(rows, parameters)
