"""Two streams of tokens that share their layers: the trunk of unwa's Siamese models.

Axis letters in this module: b batch (in a layer: sequences), n positions, t time frames, f bands, d features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.blocks.attention import Attention
from hunterFormsBS.blocks.feedForward import FeedForward
from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.blocks.positions import PositionEmbedding
from hunterFormsBS.containers import nested
from hunterFormsBS.kernels.recompute import checkpointed
from hunterFormsBS.kernels.seam import Layer
from hunterFormsBS.theTypes import ParametersTransformer


class Gains(Layer):
    """One gain per feature and layer.

    Unlike `nn.ParameterList` this module is called, so programs that load weights when a module runs, for example
    accelerate's offloading, load these too.
    """

    def __init__(self, depth: int, dim: int) -> None:
        super().__init__()
        for layer in range(depth):
            self.register_parameter(str(layer), nn.Parameter(torch.ones(dim)))

    def reset_parameters(self) -> None:
        """Set all gains to 1."""
        for gain in self.parameters():
            nn.init.ones_(gain)

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """Multiply `(b, n, d)` by the gains of a layer, numbered from 0."""
        return x * cast(Tensor, getattr(self, str(layer)))

    if TYPE_CHECKING:
        __call__ = forward


class SiameseTransformer(Layer):
    """Attention and feedforward, `depth` times, on the sum of two streams: x, post-norm, and y, pre-norm.

    A sublayer reads both streams. Its output is added to y, and, multiplied by `1 + 1 / √l`, to x, where l numbers the
    layers of the model from 1; then x is normalised.

    Parameters
    ----------
    dim, parameters, depth, positions
        See `hunterFormsBS.attend.Transformer`.
    first_layer : int
        The number of the first layer.
    """

    def __init__(
        self,
        dim: int,
        parameters: ParametersTransformer,
        *,
        depth: int,
        first_layer: int,
        positions: PositionEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.first_layer = first_layer
        self.use_torch_checkpoint = parameters.use_torch_checkpoint
        self.dim = dim
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Attention(dim, parameters.attention, positions=positions),
                    FeedForward(dim, ff_mult=parameters.ff_mult, ff_dropout=parameters.ff_dropout),
                ]
            )
            for _ in range(depth)
        )
        self.ln_y_attn, self.ln_x_attn, self.ln_y_mlp, self.ln_x_mlp = (
            nn.ModuleList(RMSNorm(dim) for _ in range(depth)) for _ in range(4)
        )
        self.y_attn = Gains(depth, dim)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Transform two tensors `(b, n, d)`."""
        run = checkpointed(self.run_layers) if self.use_torch_checkpoint else self.run_layers
        return run(x, y)

    def run_layers(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Run all layers, without activation checkpointing."""
        norms = zip(self.ln_y_attn, self.ln_x_attn, self.ln_y_mlp, self.ln_x_mlp, strict=True)
        layers = nested(self.layers)
        for layer, ((attention, feed_forward), of_layer) in enumerate(zip(layers, norms, strict=True)):
            y_attn, x_attn, y_mlp, x_mlp = of_layer
            factor = 1 + (self.first_layer + layer) ** -0.5
            out, _ = attention(self.y_attn(x, layer) + y_attn(y))
            x, y = x_attn(x + factor * out), y + out
            out = feed_forward(x + y_mlp(y))
            x, y = x_mlp(x + factor * out), y + out
        return x, y


def siamese_groups(
    dim: int,
    parameters: ParametersTransformer,
    *,
    depth: int,
    axis_depths: Sequence[int],
    positions: Sequence[PositionEmbedding | None],
) -> nn.ModuleList:
    """Build `depth` groups of a transformer along time and one along frequency.

    Parameters
    ----------
    dim, parameters
        See `SiameseTransformer`.
    depth : int
        Groups.
    axis_depths, positions : sequence
        Layers and position embedding of the two axes.
    """
    first, groups = 1, nn.ModuleList()
    for _ in range(depth):
        group = nn.ModuleList()
        for layers, of_axis in zip(axis_depths, positions, strict=True):
            group.append(SiameseTransformer(dim, parameters, depth=layers, first_layer=first, positions=of_axis))
            first += layers
        groups.append(group)
    return groups


def run_siamese(groups: nn.ModuleList, tokens: Tensor, final_norm: nn.Module) -> Tensor:
    """Run all groups on two copies of the tokens, `(b, t, f, d)`, and return x plus y after the final norm."""
    x, y = tokens, tokens
    batch, frames = tokens.shape[:2]
    for time, freq in nested(groups):
        x, y = time(*(rearrange(stream, "b t f d -> (b f) t d") for stream in (x, y)))
        x, y = freq(*(rearrange(stream, "(b f) t d -> (b t) f d", b=batch) for stream in (x, y)))
        x, y = (rearrange(stream, "(b t) f d -> b t f d", t=frames) for stream in (x, y))
    return x + final_norm(y)
