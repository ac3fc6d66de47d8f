"""The layers that work band by band, and the loss.

A band layout enters as the widths of its bands, in real numbers per frame: bins × audio channels × 2. What
`BandSplit` reads and `MaskEstimator` writes holds the bands one after another on the last axis, and within a
band the order is (f s c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise
from typing import Any, Literal, cast, overload

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hunterFormsBS.blocks.layout import (
    DEFAULT_FREQS_PER_BANDS,
    mask_filter_bank_bs_roformer_default,
    mask_filter_bank_mel,
    mask_filter_bank_mel_band_default,
    mask_filter_bank_non_overlapping,
)
from hunterFormsBS.blocks.norm import RMSNorm, at_least_float32, rms_norm
from hunterFormsBS.blocks.spectrum import lacks_fft, padded_for_stft
from hunterFormsBS.kernels.bandGroups import BandGroups
from hunterFormsBS.kernels.linear import through
from hunterFormsBS.kernels.seam import are_plain, constant_when_compiled, is_eager_on_cpu
from hunterFormsBS.theTypes import ParametersComputeLoss

# torch.fft has no annotations.
rfft = cast("Callable[..., Tensor]", torch.fft.rfft)  # pyright: ignore[reportUnknownMemberType]
irfft = cast("Callable[..., Tensor]", torch.fft.irfft)  # pyright: ignore[reportUnknownMemberType]

__all__ = [
    "DEFAULT_FREQS_PER_BANDS",
    "MLP",
    "BandSplit",
    "MaskEstimator",
    "lossComputation",
    "mask_filter_bank_bs_roformer_default",
    "mask_filter_bank_mel",
    "mask_filter_bank_mel_band_default",
    "mask_filter_bank_non_overlapping",
]


class BandSplit(nn.Module):
    """Map each band of each frame to one token: RMSNorm and Linear, separate for every band.

    Parameters
    ----------
    dim : int
        Features of a token.
    dim_inputs : sequence of int
        Widths of the bands.
    """

    def __init__(self, dim: int, dim_inputs: Sequence[int]) -> None:
        super().__init__()
        self.dim_inputs = tuple(dim_inputs)
        self.to_features = nn.ModuleList(nn.Sequential(RMSNorm(width), nn.Linear(width, dim)) for width in dim_inputs)
        self.groups = BandGroups(dim_inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, sum of widths)` to `(b, t, band, d)`."""
        if is_eager_on_cpu(x) or not self.is_plain():
            bands = torch.split(x, list(self.dim_inputs), dim=-1)
            return torch.stack([net(band) for band, net in zip(bands, self.to_features, strict=True)], dim=-2)
        return self._by_groups(x)

    def _by_groups(self, x: Tensor) -> Tensor:
        """Do what `forward` does with one product for each group of bands, instead of one for each band."""
        norms, linears = zip(*cast("Iterable[tuple[RMSNorm, nn.Linear]]", self.to_features), strict=True)
        groups = self.groups
        # Padding is zero in all factors, and adds nothing.
        frames = F.pad(rearrange(x, "b t w -> (b t) w"), (0, 1)).index_select(-1, groups.columns)
        gamma = F.pad(torch.cat([norm.gamma for norm in norms]), (0, 1)).index_select(0, groups.columns)
        weight = F.pad(torch.cat([linear.weight for linear in linears], dim=-1), (0, 1))
        weight = weight.index_select(-1, groups.columns)
        bias = torch.stack([linears[band].bias for band in groups.bands])[:, None]
        # But it does count in a mean.
        gamma = gamma * (groups.widths / groups.padded_widths).sqrt()
        tokens: list[Tensor] = []
        for group in groups.groups:
            bands, gains, factor = (
                rearrange(t[..., group.columns], "r (f w) -> f r w", w=group.width)
                for t in (frames, gamma[None], weight)
            )
            normed = rms_norm(bands, gains).to(weight.dtype)
            tokens.append(torch.baddbmm(bias[group.bands], normed, factor.mT))
        return rearrange(torch.cat(tokens).index_select(0, groups.rank), "f (b t) d -> b t f d", b=x.shape[0])

    @constant_when_compiled
    def is_plain(self) -> bool:
        """Tell whether every layer is as constructed, so that products may be shared among bands."""
        return are_plain(self, {BandSplit, BandGroups, nn.ModuleList, nn.Sequential, RMSNorm, nn.Linear})


def MLP(dim_in: int, dim_out: int, *, dim_hidden: int, depth: int = 1) -> nn.Sequential:
    """Return `depth` hidden layers of `dim_hidden` features with tanh, then one Linear."""
    dims = (dim_in, *(dim_hidden,) * depth)
    hidden = [layer for pair in pairwise(dims) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(dims[-1], dim_out))


class MaskEstimator(nn.Module):
    """Map each token to the complex mask of its band: an MLP and a gated linear unit [1]_, separate for every band.

    Parameters
    ----------
    dim : int
        Features of a token.
    dim_inputs : sequence of int
        Widths of the bands.
    mask_estimator_depth : int
        Hidden layers.
    mlp_expansion_factor : int
        A hidden layer has `dim * mlp_expansion_factor` features.

    References
    ----------
    .. [1] Dauphin et al., Language Modeling with Gated Convolutional Networks, ICML 2017, arXiv 1612.08083.
    """

    def __init__(
        self, dim: int, dim_inputs: Sequence[int], *, mask_estimator_depth: int = 1, mlp_expansion_factor: int = 4
    ) -> None:
        super().__init__()
        self.dim_inputs = tuple(dim_inputs)
        dim_hidden = dim * mlp_expansion_factor
        self.to_freqs = nn.ModuleList(
            nn.Sequential(MLP(dim, 2 * width, dim_hidden=dim_hidden, depth=mask_estimator_depth), nn.GLU(dim=-1))
            for width in dim_inputs
        )
        self.groups = BandGroups(dim_inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, band, d)` to `(b, t, sum of widths)`."""
        return masks_of_stems([self], x)[:, 0]

    @constant_when_compiled
    def is_plain(self) -> bool:
        """As `BandSplit.is_plain`."""
        return are_plain(self, {MaskEstimator, BandGroups, nn.ModuleList, nn.Sequential, nn.Linear, nn.Tanh, nn.GLU})


def masks_of_stems(estimators: Sequence[MaskEstimator], x: Tensor) -> Tensor:
    """Apply the mask estimators of several stems at once: `(b, t, band, d)` to `(b, n, t, sum of widths)`."""
    if not is_eager_on_cpu(x) and all(estimator.is_plain() for estimator in estimators):
        return _masks_by_groups(estimators, x)
    # Once for all stems: each linear map, and each gradient, would copy a band out of its tokens for itself.
    bands = map(Tensor.contiguous, x.unbind(-2))
    nets_of_bands = zip(*(estimator.to_freqs for estimator in estimators), strict=True)
    by_band = [[through(net, band) for net in nets] for band, nets in zip(bands, nets_of_bands, strict=True)]
    masks = torch.cat(list(chain.from_iterable(zip(*by_band, strict=True))), dim=-1)
    return rearrange(masks, "b t (n w) -> b n t w", n=len(estimators))


def _masks_by_groups(estimators: Sequence[MaskEstimator], x: Tensor) -> Tensor:
    """Do what `masks_of_stems` does with one product for all stems and all bands of a group, not one for each."""
    stems = len(estimators)
    groups = estimators[0].groups
    # mlps[stem][band][layer]
    mlps = [[list(net[0]) for net in cast("Iterable[Any]", estimator.to_freqs)] for estimator in estimators]
    hidden = repeat(x.index_select(-2, groups.order), "b t f d -> (f n) (b t) d", n=stems)
    for layer in range(0, len(mlps[0][0]) - 1, 2):
        linears = [mlp[band][layer] for band in groups.bands for mlp in mlps]
        weight, bias = (torch.stack([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
        hidden = torch.baddbmm(bias[:, None], hidden, weight.mT).tanh()

    linears = [mlp[-1] for stem in mlps for mlp in stem]
    weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
    first_rows = len(weight) // stems * torch.arange(stems, device=x.device)[:, None]
    masks: list[Tensor] = []
    for group in groups.groups:
        width = 2 * group.width
        rows = groups.gated_rows[2 * group.columns.start : 2 * group.columns.stop]
        rows = (rearrange(rows, "(f w) -> f 1 w", w=width) + first_rows).flatten()
        factor = rearrange(weight.index_select(0, rows), "(f w) d -> f d w", w=width)
        summand = rearrange(bias.index_select(0, rows), "(f w) -> f 1 w", w=width)
        bands = hidden[stems * group.bands.start : stems * group.bands.stop]
        mask = F.glu(torch.baddbmm(summand, bands, factor), dim=-1)
        masks.append(rearrange(mask, "(f n) (b t) w -> b n t (f w)", n=stems, b=x.shape[0]))
    return torch.cat(masks, dim=-1).index_select(-1, groups.places)


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
    """Compare estimated stems with true ones, as waveforms and as spectra at several resolutions.

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
    weight = multi_stft["multi_stft_resolution_loss_weight"]
    if weight == 0 and not return_loss_breakdown:
        return waveform_term

    # The transform is linear: one STFT of the difference serves for two.
    rows = difference.flatten(0, -2)
    if rows.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        multi_stft_term = cast(Tensor, _SpectralTerm.apply(rows, multi_stft))  # type: ignore[no-untyped-call]
    else:
        sizes = multi_stft["multi_stft_resolutions_window_sizes"]
        multi_stft_term = torch.stack([_spectral_l1(rows, size, multi_stft) for size in sizes]).sum()
    loss = waveform_term + weight * multi_stft_term
    return (loss, (waveform_term, multi_stft_term)) if return_loss_breakdown else loss


class _SpectralTerm(torch.autograd.Function):
    """Sum of `_spectral_l1` over resolutions, with its gradient made at once, so that spectra need not be stored."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, multi_stft: ParametersComputeLoss) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total, gradient = rows.new_zeros(()), torch.zeros_like(rows)
        # On a CPU signal by signal, a third of the time for 8: spectra of all would be new memory every time.
        size = 1 if rows.is_cpu else len(rows)
        for part, grad_part in zip(torch.split(rows, size), torch.split(gradient, size), strict=True):
            for window_size in multi_stft["multi_stft_resolutions_window_sizes"]:
                term, grad = _spectral_l1_and_gradient(part, window_size, multi_stft)
                total += term * (len(part) / len(rows))
                grad_part.add_(grad, alpha=len(part) / len(rows))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None


def _spectral_l1_and_gradient(
    rows: Tensor, window_size: int, multi_stft: ParametersComputeLoss
) -> tuple[Tensor, Tensor]:
    """Return `_spectral_l1` and its gradient by one more real transform; autograd would take a complex one."""
    leaf = rows.detach().requires_grad_()
    with torch.enable_grad():
        frames, window = _frames_and_window(leaf, window_size, multi_stft)
    n_fft = frames.shape[-1]
    spectrum = rfft(frames.detach() * window)
    # `abs` and a division of complex by real numbers would take six times as long.
    squares = torch.view_as_real(spectrum).square()
    modulus = (squares[..., 0] + squares[..., 1]).sqrt_()
    term = modulus.mean().to(rows.device)
    # The gradient of a modulus is its number's direction, and zero at zero. Squares of less than this are zero, too.
    gain = modulus.clamp_min_(torch.finfo(modulus.dtype).tiny ** 0.5).reciprocal_()
    # The inverse transform counts twice what stands for two conjugate bins: all but 0 Hz and, if there is one, Nyquist.
    gain[..., 1 : (n_fft + 1) // 2] /= 2
    grad_frames = irfft(spectrum.mul_(gain), n_fft, norm="forward").mul_(window / gain.numel())
    return term, torch.autograd.grad(frames, leaf, grad_frames)[0]


def _spectral_l1(rows: Tensor, window_size: int, multi_stft: ParametersComputeLoss) -> Tensor:
    """Return the mean modulus of the STFT of `rows`, `(rows, t)`."""
    frames, window = _frames_and_window(rows, window_size, multi_stft)
    return rfft(frames * window).abs().mean().to(rows.device)


def _frames_and_window(rows: Tensor, window_size: int, multi_stft: ParametersComputeLoss) -> tuple[Tensor, Tensor]:
    """Return what `torch.stft` would transform: frames, `(rows, frame, n_fft)`, and the window, centred, `(n_fft)`."""
    n_fft = max(window_size, multi_stft["stft_n_fft"])
    rows = padded_for_stft(rows.cpu() if lacks_fft(rows.device) else rows, n_fft)
    rows = F.pad(rows[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
    window = multi_stft["multi_stft_window_fn"](window_size, device=rows.device, dtype=rows.dtype)
    before = (n_fft - window_size) // 2
    window = F.pad(window, (before, n_fft - window_size - before))
    if multi_stft["multi_stft_normalized"]:
        window = window * n_fft**-0.5
    return rows.unfold(-1, n_fft, multi_stft["multi_stft_hop_size"]), window
