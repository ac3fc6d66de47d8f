"""The FNO head: a Fourier neural operator [1]_ along time makes the mask of each band.

Every tensor of an operator is `(b, c, t)`, with channels c; k is a frequency along time, of which only the lowest are
kept. Attribute names follow the package neuraloperator, with which the published model was trained.

.. [1] Li et al., Fourier Neural Operator for Parametric Partial Differential Equations, ICLR 2021, arXiv 2010.08895.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypedDict

import torch
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.heads.kind import HeadKind
from hunterFormsBS.kernels.seam import Layer
from hunterFormsBS.optionRow import Needs, Option
from hunterFormsBS.variantRow import HEAD, HEADS, Count, Size, Variant

_MODES = Needs("mask_fno_modes of at least 1", ("mask_fno_modes",), any)


class OptionsFourier(TypedDict, total=False):
    """Arguments of the model for this head."""

    mask_fno_depth: Annotated[int, Option(default=3, least=1, most=64, needs=_MODES)]
    mask_fno_modes: Annotated[int, Option(default=0, most=65536, excludes=("mask_transformer_depth", "use_hyperACE"))]


class FourierConvolution(Layer):
    """Multiply the lowest frequencies along time by learned complex matrices, and drop the others.

    For so few frequencies, sums of sines and cosines replace the fast transform, in real numbers.

    Parameters
    ----------
    channels : int
        Channels in and out.
    modes : int
        Frequencies kept, including 0.
    """

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels, 1))
        self.weight = nn.Parameter(torch.empty(channels, modes, 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all numbers from a normal distribution, as neuraloperator does."""
        channels = self.weight.shape[0]
        nn.init.normal_(self.weight, std=channels**-0.5)
        nn.init.normal_(self.bias, std=channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        frames = x.shape[-1]
        modes = min(self.weight.shape[1], frames // 2 + 1)
        frequencies = torch.arange(modes, device=x.device)
        turns = torch.arange(frames, device=x.device)[:, None] * frequencies % frames
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        angles = turns.to(exact) * (2 * math.pi / frames)  # (t, k)
        cosines, sines = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        # All frequencies except 0, and Nyquist for an even number of frames, also stand for their negatives.
        alone = (frequencies == 0) | (2 * frequencies == frames)
        counted = torch.where(alone, 1.0, 2.0).to(x.dtype) / frames
        real, imaginary = x @ cosines * counted, -(x @ sines) * counted  # (b, c, k)
        of_real, of_imaginary = self.weight[:, :modes].unbind(-1)
        products = real * of_real - imaginary * of_imaginary, real * of_imaginary + imaginary * of_real
        return products[0] @ cosines.mT - products[1] @ sines.mT + self.bias


class ChannelMLP(Layer):
    """Two linear maps of the channels of each frame, with GELU between."""

    def __init__(self, channels_in: int, channels_hidden: int, channels_out: int) -> None:
        super().__init__()
        pairs = ((channels_in, channels_hidden), (channels_hidden, channels_out))
        self.fcs = nn.ModuleList(nn.Conv1d(*pair, 1) for pair in pairs)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, channels_in, t)` to `(b, channels_out, t)`."""
        first, second = self.fcs
        return second(self.act(first(x)))


class LinearSkip(Layer):
    """A linear map of the channels, without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return self.conv(x)


class GatedSkip(Layer):
    """A learned factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the factors to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return self.weight * x


class FourierBlocks(Layer):
    """Alternating convolutions in frequency and MLPs of channels, with skip connections; GELU between blocks."""

    def __init__(self, channels: int, *, modes: int, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(FourierConvolution(channels, modes) for _ in range(depth))
        self.fno_skips = nn.ModuleList(LinearSkip(channels) for _ in range(depth))
        self.channel_mlp = nn.ModuleList(ChannelMLP(channels, channels // 2, channels) for _ in range(depth))
        self.channel_mlp_skips = nn.ModuleList(GatedSkip(channels) for _ in range(depth))
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        parts = (self.convs, self.fno_skips, self.channel_mlp, self.channel_mlp_skips)
        last = len(self.convs) - 1
        for number, (convolution, skip, mlp, gate) in enumerate(zip(*parts, strict=True)):
            hidden = convolution(x) + skip(x)
            x = mlp(hidden if number == last else self.act(hidden)) + gate(x)
            x = x if number == last else self.act(x)
        return x


class FourierOperator(Layer):
    """Lifting, Fourier blocks, projection.

    Parameters
    ----------
    channels : int
        Channels in, and of the blocks.
    channels_out : int
        Channels out.
    modes, depth : int
        Frequencies that each block keeps, and blocks.
    """

    def __init__(self, channels: int, channels_out: int, *, modes: int, depth: int) -> None:
        super().__init__()
        self.fno_blocks = FourierBlocks(channels, modes=modes, depth=depth)
        # An extra channel holds the position of a frame in the excerpt.
        self.lifting = ChannelMLP(channels + 1, 2 * channels, channels)
        self.projection = ChannelMLP(channels, 2 * channels, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, channels, t)` to `(b, channels_out, t)`."""
        frames = x.shape[-1]
        offsets = (torch.arange(frames, device=x.device).to(x.dtype) / frames).expand(x.shape[0], 1, frames)
        return self.projection(self.fno_blocks(self.lifting(torch.cat((x, offsets), dim=1))))


class FourierMaskEstimator(Layer):
    """A Fourier neural operator along time and a gated linear unit, separate for every band.

    Parameters
    ----------
    dim, dim_inputs
        See `hunterFormsBS.heads.mlp.MaskEstimator`.
    mask_fno_modes, mask_fno_depth : int
        Frequencies kept in each block, and number of blocks.
    """

    def __init__(self, dim: int, dim_inputs: Sequence[int], *, mask_fno_modes: int, mask_fno_depth: int = 3) -> None:
        super().__init__()
        self.to_freqs = nn.ModuleList(
            nn.Sequential(FourierOperator(dim, 2 * width, modes=mask_fno_modes, depth=mask_fno_depth), nn.GLU(dim=-2))
            for width in dim_inputs
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, band, d)` to `(b, t, sum of widths)`."""
        bands = rearrange(x, "b t f d -> f b d t")
        masks = [net(band) for band, net in zip(bands, self.to_freqs, strict=True)]
        return rearrange(torch.cat(masks, dim=1), "b w t -> b t w")


def build(dim: int, dim_inputs: Sequence[int], arguments: Mapping[str, Any]) -> FourierMaskEstimator:
    """Return the head that the model's arguments describe."""
    modes, depth = arguments["mask_fno_modes"], arguments["mask_fno_depth"]
    return FourierMaskEstimator(dim, dim_inputs, mask_fno_modes=modes, mask_fno_depth=depth)


_OPERATOR: Final = rf"{HEAD}to_freqs\.0\.0\.fno_blocks\.convs\."

FOURIER = HeadKind(
    "mask_fno_modes",
    build,
    variants=(
        Variant(
            name="BS-RoFormer with FNO heads",
            pattern=r"\.fno_blocks\.|\.to_freqs\.\d+\.0\.(?:lifting|projection)\.",
            example="mask_estimators.0.to_freqs.0.0.fno_blocks.convs.0.weight.tensor",
            options="mask_fno_modes=33",
            switches=("mask_fno_modes",),
            readings={
                "mask_fno_modes": Size(rf"{_OPERATOR}\d+\.weight", axis=1),
                "mask_fno_depth": Count(rf"{_OPERATOR}(\d+)\.weight"),
            },
            keys=rf"{HEADS}to_freqs\.\d+\.0\.(?:fno_blocks|lifting|projection)\.\S+",
            published="unwa",
        ),
    ),
)
