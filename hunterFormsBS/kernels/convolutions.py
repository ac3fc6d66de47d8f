"""Convolutions of a mask head on a CPU, with channels last: the channels of a pixel are adjacent in memory.

So a 1×1 convolution is a linear map, oneDNN need not reorder its input and output, and norms and activations work in
place, on blocks of frames that stay in the cache. This is only for inference: the backward pass would need what is
overwritten.

Axis letters: b batch, c channels, t time frames, f frequency bins.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.kernels.internals import onednn
from hunterFormsBS.kernels.linear import linear
from hunterFormsBS.kernels.seam import Served, Where, kernel


class Pointwise(Served, Protocol):
    """A 1×1 convolution, a norm and SiLU."""

    conv: Any
    bn: nn.InstanceNorm2d


class Separable(Served, Protocol):
    """A depthwise convolution, a 1×1 convolution, a norm and SiLU."""

    dwconv: Any
    pwconv: Any
    bn: nn.InstanceNorm2d


class TimeFreqConvolutions(Served, Protocol):
    """Convolutions around a linear map along frequency, with a shortcut."""

    tfc1: Any
    tdf: Any
    tfc2: Any
    shortcut: Any


NUMBERS_PER_BLOCK = 2**17
"""Numbers normalised together: half a mebibyte in float32."""


@kernel(Where.CPU)
def pointwise_in_place(layer: Pointwise, x: Tensor) -> Tensor | None:
    """Normalise and activate the output of the convolution in place."""
    if not _serves(layer, x):
        return None
    return _picture(norm_and_activate_(_of_one_pixel(layer.conv, _pixels(x)), layer.bn))


@kernel(Where.CPU)
def separable_in_place(layer: Separable, x: Tensor) -> Tensor | None:
    """Likewise, after a depthwise convolution."""
    if not _serves(layer, x):
        return None
    pixels = _pixels(layer.dwconv(x.contiguous(memory_format=torch.channels_last)))
    return _picture(norm_and_activate_(_of_one_pixel(layer.pwconv, pixels), layer.bn))


@kernel(Where.CPU)
def time_freq_in_place(layer: TimeFreqConvolutions, x: Tensor) -> Tensor | None:
    """Likewise, with products along frequency that leave channels last."""
    if not _serves(layer, x):
        return None
    pixels = _pixels(x)
    first_norm, _, narrow, second_norm, _, widen = layer.tdf
    hidden = _activated_convolution(layer.tfc1, pixels.clone())
    frequencies = norm_and_activate_(narrow.weight @ norm_and_activate_(hidden.clone(), first_norm), second_norm)
    hidden += widen.weight @ frequencies
    return _picture(_activated_convolution(layer.tfc2, hidden).add_(_of_one_pixel(layer.shortcut, pixels)))


@kernel(Where.CPU, ordinary=True)
def shuffle_pixels(picture: Tensor) -> Tensor | None:
    """Keep channels last."""
    if not picture.is_contiguous(memory_format=torch.channels_last) or picture.is_contiguous():
        return None
    return _picture(rearrange(picture, "b (c two) t f -> b t (f two) c", two=2))


def _activated_convolution(layer: Any, pixels: Tensor) -> Tensor:
    """Overwrite `pixels`, and return others."""
    norm, _, convolution = layer
    return _pixels(convolution(_picture(norm_and_activate_(pixels, norm))))


def _serves(layer: Served, x: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.dtype == torch.float32
        and x.ndim == 4
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)  # pyright: ignore[reportUnknownMemberType]
        and onednn() is not None
        and layer.is_unmodified_inside()
    )


def _pixels(picture: Tensor) -> Tensor:
    """Map `(b, c, t, f)` to `(b, t, f, c)`, contiguous."""
    return picture.permute(0, 2, 3, 1).contiguous()


def _picture(pixels: Tensor) -> Tensor:
    """Map `(b, t, f, c)` to `(b, c, t, f)`."""
    return pixels.permute(0, 3, 1, 2)


def _of_one_pixel(convolution: nn.Conv2d, pixels: Tensor) -> Tensor:
    return linear(pixels, convolution.weight.flatten(1))


def norm_and_activate_(pixels: Tensor, norm: nn.InstanceNorm2d) -> Tensor:
    """Apply an instance norm and SiLU to `(b, t, f, c)`, contiguous, in place."""
    freqs = pixels.shape[2]
    rows = rearrange(pixels, "b t f c -> b t (f c)")
    blocks = torch.split(rows, max(1, NUMBERS_PER_BLOCK // rows.shape[2]), dim=1)

    def repeated(value: Tensor) -> Tensor:
        return value.repeat(1, freqs)[:, None]

    # Combine mean and sum of squared differences of blocks: no sum runs over more than a block.
    counts = [freqs * block.shape[1] for block in blocks]
    means = [_by_channel(block, freqs) / count for block, count in zip(blocks, counts, strict=True)]
    squares = [
        _by_channel((block - repeated(mean)).square_(), freqs) for block, mean in zip(blocks, means, strict=True)
    ]
    weights = pixels.new_tensor(counts)[:, None, None] / sum(counts)
    each_mean = torch.stack(means)
    mean = (weights * each_mean).sum(0)
    variance = torch.stack(squares).sum(0) / sum(counts) + (weights * (each_mean - mean).square()).sum(0)
    mean, scale, shift = map(repeated, (mean, torch.rsqrt(variance + norm.eps) * norm.weight, norm.bias[None]))
    for block in blocks:
        F.silu(block.sub_(mean).mul_(scale).add_(shift), inplace=True)
    return pixels


def _by_channel(block: Tensor, freqs: int) -> Tensor:
    """Sum `(b, t, f · c)` over frames and frequencies."""
    return rearrange(block.sum(1), "b (f c) -> b f c", f=freqs).sum(1)
