"""The Conformer [1]_ that can replace the transformer along an axis.

Axis letters in this module: b sequences, n positions, d features, c channels.

.. [1] Gulati et al., Conformer: Convolution-augmented Transformer for Speech Recognition, Interspeech 2020,
   arXiv 2005.08100.
"""

from __future__ import annotations

from einops.layers.torch import Rearrange
from torch import Tensor, nn

from hunterFormsBS.blocks.attention import Attention
from hunterFormsBS.blocks.feedForward import FeedForward
from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.blocks.positions import PositionEmbedding
from hunterFormsBS.blocks.sharedBias import SharedBias
from hunterFormsBS.kernels.recompute import checkpointed
from hunterFormsBS.kernels.seam import Layer, know
from hunterFormsBS.theTypes import ParametersConvolution, ParametersTransformer

know(nn.BatchNorm1d, nn.Conv1d, nn.SiLU)


class HalfFeedForward(Layer):
    """A feedforward network scaled by one half."""

    def __init__(self, dim: int, *, ff_mult: int, ff_dropout: float) -> None:
        super().__init__()
        self.ff = FeedForward(dim, ff_mult=ff_mult, ff_dropout=ff_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, n, d)` to `(b, n, d)`."""
        return self.ff(x) * 0.5


class ConvolutionModule(Layer):
    """RMSNorm, gated linear unit, depthwise convolution along the sequence, batch norm, SiLU, Linear.

    Under activation checkpointing the forward pass runs twice, and updates the running statistics of the batch norm
    twice.

    Parameters
    ----------
    dim : int
        Features in and out.
    parameters : ParametersConvolution
        The convolution has `dim * conv_expansion_factor` channels and reaches over `conv_kernel_size` positions.
    dropout : float
        Dropout probability, at the end.
    """

    def __init__(self, dim: int, parameters: ParametersConvolution, *, dropout: float = 0.0) -> None:
        super().__init__()
        channels, size = dim * parameters.conv_expansion_factor, parameters.conv_kernel_size
        self.net = nn.Sequential(
            RMSNorm(dim),
            Rearrange("b n d -> b d n"),
            nn.Conv1d(dim, 2 * channels, 1),
            nn.GLU(dim=1),
            nn.Conv1d(channels, channels, size, padding=size // 2, groups=channels),
            nn.BatchNorm1d(channels),
            nn.SiLU(),
            nn.Conv1d(channels, dim, 1),
            Rearrange("b d n -> b n d"),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, n, d)` to `(b, n, d)`."""
        return self.net(x)


class ConformerLayer(Layer):
    """Half a feedforward, attention, convolution, half a feedforward, each with a residual connection; RMSNorm."""

    def __init__(
        self,
        dim: int,
        parameters: ParametersTransformer,
        convolution: ParametersConvolution,
        *,
        positions: PositionEmbedding | None,
        shared_bias: SharedBias | None,
    ) -> None:
        super().__init__()
        ff_mult, ff_dropout = parameters.ff_mult, parameters.ff_dropout
        self.ff1 = HalfFeedForward(dim, ff_mult=ff_mult, ff_dropout=ff_dropout)
        self.attn = Attention(dim, parameters.attention, positions=positions, shared_bias=shared_bias)
        self.conv = ConvolutionModule(dim, convolution, dropout=ff_dropout)
        self.ff2 = HalfFeedForward(dim, ff_mult=ff_mult, ff_dropout=ff_dropout)
        self.out_norm = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, n, d)` to `(b, n, d)`."""
        x = x + self.ff1(x)
        x = x + self.attn(x)[0]
        x = x + self.conv(x)
        x = x + self.ff2(x)
        return self.out_norm(x)


class Conformer(Layer):
    """`ConformerLayer`, `depth` times.

    Parameters
    ----------
    dim, depth, positions
        See `hunterFormsBS.attend.Transformer`.
    parameters : ParametersTransformer
        Of attention, feedforward and the norm of the output.
    convolution : ParametersConvolution
        Of the convolutions.
    shared_bias : SharedBias, default None
        Of attention.
    """

    def __init__(
        self,
        dim: int,
        parameters: ParametersTransformer,
        convolution: ParametersConvolution,
        *,
        depth: int,
        positions: PositionEmbedding | None = None,
        shared_bias: SharedBias | None = None,
    ) -> None:
        super().__init__()
        self.use_torch_checkpoint = parameters.use_torch_checkpoint
        self.layers = nn.ModuleList(
            ConformerLayer(dim, parameters, convolution, positions=positions, shared_bias=shared_bias)
            for _ in range(depth)
        )
        self.norm = RMSNorm(dim) if parameters.norm_output else nn.Identity()

    def forward(self, x: Tensor, first_values: Tensor | None = None) -> tuple[Tensor, None]:  # noqa: ARG002
        """Map `(b, n, d)` to `(b, n, d)`. Unlike a transformer, it returns no values for later layers."""
        run = checkpointed(self.run_layers) if self.use_torch_checkpoint else self.run_layers
        return run(x), None

    def run_layers(self, x: Tensor) -> Tensor:
        """Run all layers, without activation checkpointing."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)
