"""The HyperACE branch of a mask head: tokens as an image of time and bands, upsampled to masks of all bins.

Every tensor is `(b, c, t, f)`, with channels c. The two published versions differ in three respects: whether the last
two stages of the backbone halve the number of bands, the amount of hypergraph fusion, and the head that maps bands to
bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hunterFormsBS.heads.hyperACE.convolutions import C3k2, Conv, DSConv, TimeFreqConvolutions, resize, shuffle
from hunterFormsBS.heads.hyperACE.hypergraph import HyperACE
from hunterFormsBS.kernels.seam import Layer
from hunterFormsBS.theTypes import ParametersBranch

UPSAMPLE_DIVISORS = {1: (1, 1, 2, 2, 4), 2: (1, 2, 4, 8, 16)}
"""Channels before and after each of the four doublings, in each version."""


class Backbone(Layer):
    """Five strided stages. It returns the last four: from `(b, c, t / 4, f)` to `(b, c, t / 32, …)`.

    Parameters
    ----------
    dim : int
        Channels in.
    channels : sequence of int
        Channels of the five stages.
    depth : int
        Bottlenecks of the second and the last stage; those between have twice as many.
    halve_bands : bool
        Whether the last two stages halve the number of bands as well as that of frames.
    """

    def __init__(self, dim: int, channels: Sequence[int], *, depth: int, halve_bands: bool) -> None:
        super().__init__()
        frames = (2, 1)
        strides = (frames, frames, (2, 2), (2, 2)) if halve_bands else (frames,) * 4
        stages = [
            nn.Sequential(DSConv(*pair, stride=stride), C3k2(pair[1], pair[1], bottlenecks))
            for pair, stride, bottlenecks in zip(
                pairwise(channels), strides, (depth, 2 * depth, 2 * depth, depth), strict=True
            )
        ]
        self.stem = DSConv(dim, channels[0], stride=frames)
        self.p2, self.p3, self.p4, self.p5 = stages

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return four resolutions of `(b, d, t, f)`, the finest first."""
        x = self.stem(x)
        stages: list[Tensor] = []
        for stage in (self.p2, self.p3, self.p4, self.p5):
            x = stage(x)
            stages.append(x)
        return stages


class GatedFusion(Layer):
    """Add a second map to the first, scaled by a learned factor per channel that starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(1, channels, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the factors to 0."""
        nn.init.zeros_(self.gamma)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Return a tensor of the shape of both."""
        return x + self.gamma * other


class Decoder(Layer):
    """From the coarsest resolution back to the finest, each combined with its stage and the fused map.

    Parameters
    ----------
    channels : sequence of int
        Of the four resolutions, the finest first.
    fused_channels : int
        Of the fused map.
    """

    def __init__(self, channels: Sequence[int], fused_channels: int) -> None:
        super().__init__()
        c2, c3, c4, c5 = channels
        self.h_to_d5, self.h_to_d4, self.h_to_d3, self.h_to_d2 = (Conv(fused_channels, c) for c in (c5, c4, c3, c2))
        self.fusion_d5, self.fusion_d4, self.fusion_d3, self.fusion_d2 = (GatedFusion(c) for c in (c5, c4, c3, c2))
        self.skip_p5, self.skip_p4, self.skip_p3, self.skip_p2 = (Conv(c, c) for c in (c5, c4, c3, c2))
        self.up_d5, self.up_d4, self.up_d3 = C3k2(c5, c4), C3k2(c4, c3), C3k2(c3, c2)
        self.final_d2 = C3k2(c2, c2)

    def forward(self, stages: Sequence[Tensor], fused: Tensor) -> Tensor:
        """Return a tensor of the shape of the finest stage."""
        p2, p3, p4, p5 = stages
        x = self.join(5, self.skip_p5(p5), fused)
        x = self.join(4, self.up_d5(resize(x, size_of(p4))) + self.skip_p4(p4), fused)
        x = self.join(3, self.up_d4(resize(x, size_of(p3))) + self.skip_p3(p3), fused)
        x = self.join(2, self.up_d3(resize(x, size_of(p2))) + self.skip_p2(p2), fused)
        return self.final_d2(x)

    def join(self, level: int, x: Tensor, fused: Tensor) -> Tensor:
        """Add the fused map, at the resolution of `x`."""
        convolution, fusion = getattr(self, f"h_to_d{level}"), getattr(self, f"fusion_d{level}")
        return fusion(x, convolution(resize(fused, size_of(x))))


def size_of(x: Tensor) -> tuple[int, int]:
    """Return the number of frames and of bins."""
    return x.shape[2], x.shape[3]


class FreqPixelShuffle(Layer):
    """Twice as many bins from twice as many channels; then, in version 2, two `TimeFreqConvolutions`."""

    def __init__(self, channels_in: int, channels_out: int, num_freqs: int, *, version: int) -> None:
        super().__init__()
        self.conv = DSConv(channels_in, 2 * channels_out)
        self.out_conv: nn.Module = nn.Identity()
        if version == 2:
            self.out_conv = Blocks(TimeFreqConvolutions(channels_out, num_freqs) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, channels_in, t, f)` to `(b, channels_out, t, 2 · f)`."""
        return self.out_conv(shuffle(self.conv(x)))


class Blocks(Layer):
    """Layers one after another."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all."""
        return self.blocks(x)


class UpsampleHead(Layer):
    """Four doublings of the number of bands, then interpolation to the bins of all bands."""

    def __init__(self, channels: int, channels_out: int, *, num_bands: int, num_bins: int, version: int) -> None:
        super().__init__()
        self.num_bins = num_bins
        widths = [channels // divisor for divisor in UPSAMPLE_DIVISORS[version]]
        self.block1, self.block2, self.block3, self.block4 = (
            FreqPixelShuffle(*pair, num_bands * 2**doublings, version=version)
            for doublings, pair in enumerate(pairwise(widths), start=1)
        )
        kernel_size, padding = (1, 0) if version == 1 else (3, 1)
        self.final_conv = nn.Conv2d(widths[-1], channels_out, kernel_size, padding=padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, c, t, band)` to `(b, channels_out, t, bins of all bands)`."""
        x = self.block4(self.block3(self.block2(self.block1(x))))
        if x.shape[-1] != self.num_bins:
            x = resize(x, (x.shape[2], self.num_bins))
        return self.final_conv(x)


class SegmModel(Layer):
    """Backbone, hypergraph fusion, decoder and upsampling head.

    Parameters
    ----------
    dim : int
        Features of a token.
    channels_out : int
        Real numbers of a mask per bin: two per audio channel.
    num_bands, num_bins : int
        Bands, and bins of all bands together.
    parameters : ParametersBranch
        Sizes of the branch.
    """

    def __init__(
        self, dim: int, channels_out: int, *, num_bands: int, num_bins: int, parameters: ParametersBranch
    ) -> None:
        super().__init__()
        version, channels = parameters.segm_version, parameters.segm_backbone_channels
        self.backbone = Backbone(dim, channels, depth=parameters.segm_base_depth, halve_bands=version == 2)
        self.hyperace = HyperACE(
            channels[1:],
            num_hyperedges=parameters.segm_num_hyperedges,
            num_heads=parameters.segm_num_heads,
            num_high_order=parameters.segm_hyperace_k,
            num_low_order=parameters.segm_hyperace_l,
        )
        self.decoder = Decoder(channels[1:], channels[3])
        self.upsample_head = UpsampleHead(
            channels[1], channels_out, num_bands=num_bands, num_bins=num_bins, version=version
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, d, t, band)` to `(b, channels_out, t, bins of all bands)`."""
        stages = self.backbone(x)
        decoded = self.decoder(stages, self.hyperace(stages))
        return self.upsample_head(resize(decoded, (x.shape[2], decoded.shape[3])))
