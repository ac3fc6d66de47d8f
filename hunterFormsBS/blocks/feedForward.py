"""The feedforward network of a transformer layer."""

from __future__ import annotations

from torch import Tensor, nn

from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.kernels.feedForward import feed_forward
from hunterFormsBS.kernels.seam import Layer, served_by


class FeedForward(Layer):
    """RMSNorm, Linear, GELU [1]_, Linear, with a dropout after the activation and after the second Linear.

    Parameters
    ----------
    dim : int
        Features in and out.
    ff_mult : int
        The hidden layer has `dim * ff_mult` features.
    ff_dropout : float
        Dropout probability.

    References
    ----------
    .. [1] Hendrycks & Gimpel, Gaussian Error Linear Units, 2016, arXiv 1606.08415.
    """

    def __init__(self, dim: int, *, ff_mult: int = 4, ff_dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            RMSNorm(dim),
            nn.Linear(dim, dim * ff_mult),
            nn.GELU(),
            nn.Dropout(ff_dropout),
            nn.Linear(dim * ff_mult, dim),
            nn.Dropout(ff_dropout),
        )

    @served_by(feed_forward)
    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., d)` to `(..., d)`."""
        return self.net(x)
