"""Convolutions over time and frequency for the HyperACE branch of a mask head.

Every tensor is `(b, c, t, f)`, with channels c. Attributes are named as in the published state dicts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.kernels.convolutions import (
    pointwise_in_place,
    separable_in_place,
    shuffle_pixels,
    time_freq_in_place,
)
from hunterFormsBS.kernels.seam import Layer, know, served_by

know(nn.Conv2d, nn.InstanceNorm2d, nn.SiLU)


def instance_norm(channels: int) -> nn.InstanceNorm2d:
    """Return a norm over time and frequency, of each channel by itself, with a learned gain and shift."""
    return nn.InstanceNorm2d(channels, affine=True, eps=1e-8)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate `(b, c, t, f)` linearly along both axes to `size`, `(t, f)`."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@served_by(shuffle_pixels)
def shuffle(picture: Tensor) -> Tensor:
    """Make twice as many bins, side by side, of pairs of channels: `(b, 2 c, t, f)` to `(b, c, t, 2 f)`."""
    return rearrange(picture, "b (c two) t f -> b c t (f two)", two=2)


class Conv(Layer):
    """A convolution of one bin and one frame, instance norm and SiLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.bn = instance_norm(channels_out)
        self.act = nn.SiLU()

    @served_by(pointwise_in_place)
    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, c, t, f)` to `(b, channels_out, t, f)`."""
        return self.act(self.bn(self.conv(x)))


class DSConv(Layer):
    """A depthwise separable convolution, 3 frames by 3 bins, with instance norm and SiLU.

    Parameters
    ----------
    channels_in, channels_out : int
        Channels.
    stride : (int, int)
        Frames and bins from one output to the next.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels_in, channels_in, 3, stride, padding=1, groups=channels_in, bias=False)
        self.pwconv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.bn = instance_norm(channels_out)
        self.act = nn.SiLU()

    @served_by(separable_in_place)
    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, c, t, f)` to `(b, channels_out, t / stride, f / stride)`, rounded up."""
        return self.act(self.bn(self.pwconv(self.dwconv(x))))


class Bottleneck(Layer):
    """Two separable convolutions with a residual connection around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dsconv1 = DSConv(channels, channels)
        self.dsconv2 = DSConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return x + self.dsconv2(self.dsconv1(x))


class C3k(Layer):
    """`num_bottlenecks` bottlenecks parallel to a shortcut, concatenated and fused; the number of channels stays."""

    def __init__(self, channels: int, num_bottlenecks: int = 1) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels)
        self.cv2 = Conv(channels, channels)
        self.cv3 = Conv(2 * channels, channels)
        self.m = nn.Sequential(*(Bottleneck(channels) for _ in range(num_bottlenecks)))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))


class C3k2(Layer):
    """A `C3k` on half of `channels_out` channels, with a convolution before and after it."""

    def __init__(self, channels_in: int, channels_out: int, num_bottlenecks: int = 1) -> None:
        super().__init__()
        self.cv1 = Conv(channels_in, channels_out // 2)
        self.m = C3k(channels_out // 2, num_bottlenecks)
        self.cv2 = Conv(channels_out // 2, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, channels_in, t, f)` to `(b, channels_out, t, f)`."""
        return self.cv2(self.m(self.cv1(x)))


class TimeFreqConvolutions(Layer):
    """Convolutions over time and frequency around a linear map along frequency, with a shortcut [1]_.

    Parameters
    ----------
    channels : int
        Channels in and out.
    num_freqs : int
        Bins; the linear map has a bottleneck of a quarter as many.

    References
    ----------
    .. [1] Kim et al., Sound Demixing Challenge 2023 Music Demixing Track Technical Report: TFC-TDF-UNet v3, 2023,
       arXiv 2306.09382.
    """

    def __init__(self, channels: int, num_freqs: int) -> None:
        super().__init__()

        def convolution() -> nn.Sequential:
            norm, activation = instance_norm(channels), nn.SiLU()
            return nn.Sequential(norm, activation, nn.Conv2d(channels, channels, 3, padding=1, bias=False))

        self.tfc1 = convolution()
        self.tdf = nn.Sequential(
            instance_norm(channels),
            nn.SiLU(),
            nn.Linear(num_freqs, num_freqs // 4, bias=False),
            instance_norm(channels),
            nn.SiLU(),
            nn.Linear(num_freqs // 4, num_freqs, bias=False),
        )
        self.tfc2 = convolution()
        self.shortcut = nn.Conv2d(channels, channels, 1, bias=False)

    @served_by(time_freq_in_place)
    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        hidden = self.tfc1(x)
        return self.tfc2(hidden + self.tdf(hidden)) + self.shortcut(x)
