"""The transformer along one axis.

Axis letters in this module: b sequences, n positions, h heads, d features, e features of one head.
"""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

from hunterFormsBS.blocks.attention import Attention, LinearAttention
from hunterFormsBS.blocks.feedForward import FeedForward
from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.blocks.positions import PositionEmbedding, add_sinusoids
from hunterFormsBS.blocks.residual import has_streams, reset_connection, residual_wrapper
from hunterFormsBS.blocks.sharedBias import SharedBias
from hunterFormsBS.containers import nested
from hunterFormsBS.kernels.recompute import checkpointed
from hunterFormsBS.kernels.seam import Layer, served_by
from hunterFormsBS.kernels.transformer import by_blocks
from hunterFormsBS.theTypes import ParametersTransformer, ValueResidualMix


class Transformer(Layer):
    """Attention and feedforward, `depth` times, each with a residual connection, along one axis.

    Parameters
    ----------
    dim : int
        Features.
    parameters : ParametersTransformer
        Of attention, feedforward, residual connections and norm.
    depth : int
        Number of attention and feedforward pairs.
    linear_attn : bool
        Use `LinearAttention`, which has no position embedding.
    positions, value_residual_mix
        See `Attention`.
    keep_values : bool
        Return the first layer's values, for the layer groups that follow.
    adds_input : bool, default None
        Add the input of a sublayer to its output. None: unless residual streams do.
    shared_bias : SharedBias, default None
        See `Attention`.
    sinusoidal : bool
        Add sines and cosines of the positions to the input.
    """

    def __init__(
        self,
        dim: int,
        parameters: ParametersTransformer = ParametersTransformer(),  # noqa: B008  # it cannot change
        *,
        depth: int,
        linear_attn: bool = False,
        positions: PositionEmbedding | None = None,
        value_residual_mix: ValueResidualMix | None = None,
        keep_values: bool = False,
        adds_input: bool | None = None,
        shared_bias: SharedBias | None = None,
        sinusoidal: bool = False,
    ) -> None:
        super().__init__()
        self.linear_attn = linear_attn
        self.keep_values = keep_values
        self.sinusoidal = sinusoidal
        self.use_torch_checkpoint = parameters.use_torch_checkpoint
        self.num_residual_streams = parameters.residual.num_residual_streams
        self.has_streams = has_streams(parameters.residual)
        self.adds_input = not self.has_streams if adds_input is None else adds_input

        def make_attention() -> nn.Module:
            if linear_attn:
                return LinearAttention(dim, parameters.attention, value_residual_mix=value_residual_mix)
            return Attention(
                dim,
                parameters.attention,
                positions=positions,
                value_residual_mix=value_residual_mix,
                shared_bias=shared_bias,
            )

        def make_feed_forward() -> nn.Module:
            return FeedForward(dim, ff_mult=parameters.ff_mult, ff_dropout=parameters.ff_dropout)

        wrap = residual_wrapper(dim, parameters.residual)
        self.layers = nn.ModuleList(
            nn.ModuleList([wrap(make_attention(), 2 * pair), wrap(make_feed_forward(), 2 * pair + 1)])
            for pair in range(depth)
        )
        self.norm = RMSNorm(dim) if parameters.norm_output else nn.Identity()
        self.dim = dim
        self.residual = parameters.residual

    def reset_parameters(self) -> None:
        """Initialise the parameters of the hyper-connections, if any."""
        if self.has_streams:
            for index, sublayer in enumerate(chain.from_iterable(nested(self.layers))):
                reset_connection(sublayer, self.dim, self.residual, index)

    @property
    def positions(self) -> PositionEmbedding | None:
        """The position embedding that all layers share."""
        return next((module for module in self.modules() if isinstance(module, PositionEmbedding)), None)

    @served_by(by_blocks)
    def forward(self, x: Tensor, first_values: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Transform every sequence.

        Parameters
        ----------
        x : Tensor
            `(b, n, d)`, with the streams of an item adjacent in b. A transposed view costs nothing extra.
        first_values : Tensor, default None
            The values that the transformer of this axis in the first layer group returned.

        Returns
        -------
        x : Tensor
            `(b, n, d)`.
        values : Tensor or None
            Values of the first attention, `(b, h, n, e)`; None unless `keep_values`.
        """
        run = checkpointed(self.run_layers) if self.use_torch_checkpoint else self.run_layers
        return run(x, first_values)

    def run_layers(self, x: Tensor, first_values: Tensor | None, **prepared: object) -> tuple[Tensor, Tensor | None]:
        """Run all layers, without activation checkpointing; kernels pass `prepared` to inner kernels."""
        first: Tensor | None = None
        if self.sinusoidal:
            x = add_sinusoids(x)
        for attention, feed_forward in nested(self.layers):
            out, values = attention(x, first_values=first_values, **prepared)
            first = values if first is None else first
            x = x + out if self.adds_input else out
            out = feed_forward(x, **prepared)
            x = x + out if self.adds_input else out
        return self.norm(x), first if self.keep_values else None
