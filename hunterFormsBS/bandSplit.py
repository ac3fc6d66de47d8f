"""The layers that work band by band, and the loss.

A band layout enters as the widths of its bands, in real numbers per frame: bins × audio channels × 2. What
`BandSplit` reads and `MaskEstimator` writes holds the bands one after another on the last axis, and within a
band the order is (f s c).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, cast, overload

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.layout import (
    DEFAULT_FREQS_PER_BANDS,
    mask_filter_bank_bs_roformer_default,
    mask_filter_bank_mel,
    mask_filter_bank_mel_band_default,
    mask_filter_bank_non_overlapping,
)
from hunterFormsBS.norm import RMSNorm, at_least_float32, rms_norm
from hunterFormsBS.plain import are_plain, constant_when_compiled, is_eager_on_cpu
from hunterFormsBS.spectrum import lacks_fft, padded_for_stft
from hunterFormsBS.theTypes import ParametersComputeLoss

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

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, sum of widths)` to `(b, t, band, d)`."""
        if is_eager_on_cpu(x) or not self.is_plain():
            bands = torch.split(x, list(self.dim_inputs), dim=-1)
            return torch.stack([net(band) for band, net in zip(bands, self.to_features, strict=True)], dim=-2)
        # One product for each run of bands of one width, instead of one for each band.
        tokens: list[Tensor] = []
        for run, width in runs_of_equal_width(self.dim_inputs):
            columns = slice(sum(self.dim_inputs[: run.start]), sum(self.dim_inputs[: run.stop]))
            frames = rearrange(x[..., columns], "b t (f w) -> b t f w", w=width)
            norms, linears = zip(*cast("Iterable[tuple[RMSNorm, nn.Linear]]", self.to_features[run]), strict=True)
            normed = rms_norm(frames, torch.stack([norm.gamma for norm in norms]))
            weight, bias = _stacked(linears)
            tokens.append(torch.einsum("btfw,fdw->btfd", normed, weight) + bias)
        return torch.cat(tokens, dim=-2)

    @constant_when_compiled
    def is_plain(self) -> bool:
        """Tell whether every layer is as constructed, so that products may be shared among bands."""
        return are_plain(self, {BandSplit, nn.ModuleList, nn.Sequential, RMSNorm, nn.Linear})


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

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, band, d)` to `(b, t, sum of widths)`."""
        return torch.cat([net(band) for band, net in zip(x.unbind(-2), self.to_freqs, strict=True)], dim=-1)

    @constant_when_compiled
    def is_plain(self) -> bool:
        """As `BandSplit.is_plain`."""
        return are_plain(self, {MaskEstimator, nn.ModuleList, nn.Sequential, nn.Linear, nn.Tanh, nn.GLU})


def masks_of_stems(estimators: Sequence[MaskEstimator], x: Tensor) -> Tensor:
    """Apply the mask estimators of several stems at once: `(b, t, band, d)` to `(b, n, t, sum of widths)`.

    All stems and all bands of one width share a product, where each estimator by itself has one for each band.
    """
    # mlps[stem][band][layer]
    mlps = [[list(net[0]) for net in cast("Iterable[Any]", estimator.to_freqs)] for estimator in estimators]
    hidden = x.unsqueeze(1)
    for layer in range(0, len(mlps[0][0]) - 1, 2):
        hidden = _linear_of_stems(hidden, [[mlp[layer] for mlp in stem] for stem in mlps]).tanh()
    masks: list[Tensor] = []
    for run, _ in runs_of_equal_width(estimators[0].dim_inputs):
        out = _linear_of_stems(hidden[..., run, :], [[mlp[-1] for mlp in stem[run]] for stem in mlps])
        masks.append(F.glu(out, dim=-1).flatten(-2))
    return torch.cat(masks, dim=-1)


def can_share_products(estimators: Sequence[nn.Module], x: Tensor) -> bool:
    """Tell whether `masks_of_stems` is both right and faster than one estimator after another."""
    return not is_eager_on_cpu(x) and all(isinstance(e, MaskEstimator) and e.is_plain() for e in estimators)


def runs_of_equal_width(dim_inputs: Sequence[int]) -> list[tuple[slice, int]]:
    """Return the bands and the width of each run of neighbouring bands of one width."""
    runs: list[tuple[slice, int]] = []
    for band, width in enumerate(dim_inputs):
        if runs and runs[-1][1] == width:
            runs[-1] = slice(runs[-1][0].start, band + 1), width
        else:
            runs.append((slice(band, band + 1), width))
    return runs


def _linear_of_stems(x: Tensor, linears: Sequence[Sequence[nn.Linear]]) -> Tensor:
    """Apply `linears[stem][band]` to `(b, n or 1, t, band, in)`: `(b, n, t, band, out)`."""
    weights, biases = zip(*(_stacked(stem) for stem in linears), strict=True)
    if x.shape[1] == 1:
        x = x.expand(-1, len(linears), -1, -1, -1)
    return torch.einsum("bntfw,nfdw->bntfd", x, torch.stack(weights)) + torch.stack(biases)[:, None]


def _stacked(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Return the weights, `(band, out, in)`, and biases, `(band, out)`, of layers of one shape."""
    return torch.stack([linear.weight for linear in linears]), torch.stack([linear.bias for linear in linears])


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
    multi_stft_term = torch.stack(
        [_spectral_l1(rows, size, multi_stft) for size in multi_stft["multi_stft_resolutions_window_sizes"]]
    ).sum()
    loss = waveform_term + weight * multi_stft_term
    return (loss, (waveform_term, multi_stft_term)) if return_loss_breakdown else loss


def _spectral_l1(rows: Tensor, window_size: int, multi_stft: ParametersComputeLoss) -> Tensor:
    """Return the mean modulus of the STFT of `rows`, `(rows, t)`."""
    n_fft = max(window_size, multi_stft["stft_n_fft"])
    device = rows.device
    rows = padded_for_stft(rows.cpu() if lacks_fft(device) else rows, n_fft)
    spectrum = torch.stft(
        rows,
        n_fft,
        multi_stft["multi_stft_hop_size"],
        window_size,
        multi_stft["multi_stft_window_fn"](window_size, device=rows.device, dtype=rows.dtype),
        normalized=multi_stft["multi_stft_normalized"],
        return_complex=True,
    )
    return spectrum.abs().mean().to(device)
