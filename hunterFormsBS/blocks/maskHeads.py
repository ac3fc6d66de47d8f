"""Mask heads that do more than an MLP for each band."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.bandSplit import MaskEstimator
from hunterFormsBS.blocks.fourierOperator import FourierOperator
from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.blocks.positions import RotaryEmbedding
from hunterFormsBS.blocks.segmentation import SegmModel
from hunterFormsBS.blocks.transformer import Transformer
from hunterFormsBS.theTypes import ParametersAttention, ParametersMaskEstimator, ParametersTransformer


class AxialMaskEstimator(MaskEstimator):
    """Transformers along time and along frequency, and RMSNorm, before the MLPs: the head of Large-Inst v2.

    Parameters
    ----------
    dim, dim_inputs
        See `MaskEstimator`.
    parameters : ParametersMaskEstimator
        `mask_transformer_depth` pairs of one-layer transformers, with `mask_transformer_heads` heads of
        `mask_transformer_dim_head` features.
    attention : ParametersAttention
        Which kernels attention may use; heads, dropout and scale are the head's own.
    """

    def __init__(
        self,
        dim: int,
        dim_inputs: Sequence[int],
        parameters: ParametersMaskEstimator,
        attention: ParametersAttention = ParametersAttention(),  # noqa: B008  # it cannot change
    ) -> None:
        super().__init__(
            dim,
            dim_inputs,
            mask_estimator_depth=parameters.mask_estimator_depth,
            mlp_expansion_factor=parameters.mlp_expansion_factor,
        )
        own = attention._replace(
            heads=parameters.mask_transformer_heads,
            dim_head=parameters.mask_transformer_dim_head,
            attn_dropout=0.0,
            scale=None,
            wsa_window_len=None,
            n_wsa_sinks=0,
        )
        layer = ParametersTransformer(own, norm_output=False)
        time, freq = (RotaryEmbedding(own.dim_head) for _ in range(2))
        self.layers = nn.ModuleList(
            nn.ModuleList(Transformer(dim, layer, depth=1, positions=positions) for positions in (time, freq))
            for _ in range(parameters.mask_transformer_depth)
        )
        self.norm = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, band, d)` to `(b, t, sum of widths)`."""
        batch, frames = x.shape[:2]
        for time, freq in cast("Iterable[tuple[nn.Module, nn.Module]]", self.layers):
            x, _ = time(rearrange(x, "b t f d -> (b f) t d"))
            x, _ = freq(rearrange(x, "(b f) t d -> (b t) f d", b=batch))
            x = rearrange(x, "(b t) f d -> b t f d", t=frames)
        return super().forward(self.norm(x))


class HyperACEMaskEstimator(MaskEstimator):
    """The mask of the MLPs plus that of a convolutional branch.

    Parameters
    ----------
    dim, dim_inputs
        See `MaskEstimator`.
    parameters : ParametersMaskEstimator
        `segm_…` are those of the branch.
    audio_channels : int
        Audio channels.
    """

    def __init__(
        self, dim: int, dim_inputs: Sequence[int], parameters: ParametersMaskEstimator, *, audio_channels: int
    ) -> None:
        super().__init__(
            dim,
            dim_inputs,
            mask_estimator_depth=parameters.mask_estimator_depth,
            mlp_expansion_factor=parameters.mlp_expansion_factor,
        )
        numbers = 2 * audio_channels
        self.segm = SegmModel(
            dim,
            numbers,
            num_bands=len(dim_inputs),
            num_bins=sum(dim_inputs) // numbers,
            parameters=parameters,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, band, d)` to `(b, t, sum of widths)`."""
        branch = cast(Tensor, self.segm(rearrange(x, "b t f d -> b d t f")))
        return super().forward(x) + rearrange(branch, "b c t f -> b t (f c)")


class FourierMaskEstimator(MaskEstimator):
    """A Fourier neural operator along time and a gated linear unit, separate for every band.

    Parameters
    ----------
    dim, dim_inputs
        See `MaskEstimator`.
    parameters : ParametersMaskEstimator
        `mask_fno_modes` frequencies are kept in each of `mask_fno_depth` blocks.
    """

    def __init__(self, dim: int, dim_inputs: Sequence[int], parameters: ParametersMaskEstimator) -> None:
        super().__init__(dim, dim_inputs)
        modes, depth = parameters.mask_fno_modes, parameters.mask_fno_depth
        self.to_freqs = nn.ModuleList(
            nn.Sequential(FourierOperator(dim, 2 * width, modes=modes, depth=depth), nn.GLU(dim=-2))
            for width in dim_inputs
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, band, d)` to `(b, t, sum of widths)`."""
        bands = rearrange(x, "b t f d -> f b d t")
        masks = [net(band) for band, net in zip(bands, cast("Iterable[nn.Module]", self.to_freqs), strict=True)]
        return rearrange(torch.cat(masks, dim=1), "b w t -> b t w")


def mask_estimator(
    dim: int,
    dim_inputs: Sequence[int],
    parameters: ParametersMaskEstimator,
    attention: ParametersAttention,
    *,
    audio_channels: int,
) -> MaskEstimator:
    """Return the mask head that the parameters ask for; the arguments are those of the classes."""
    if parameters.use_hyperACE:
        return HyperACEMaskEstimator(dim, dim_inputs, parameters, audio_channels=audio_channels)
    if parameters.mask_fno_modes:
        return FourierMaskEstimator(dim, dim_inputs, parameters)
    if parameters.mask_transformer_depth:
        return AxialMaskEstimator(dim, dim_inputs, parameters, attention)
    return MaskEstimator(
        dim,
        dim_inputs,
        mask_estimator_depth=parameters.mask_estimator_depth,
        mlp_expansion_factor=parameters.mlp_expansion_factor,
    )
