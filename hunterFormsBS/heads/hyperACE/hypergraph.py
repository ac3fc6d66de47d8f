"""Hypergraph fusion of feature maps: positions of all resolutions exchange information through hyperedges [1]_.

Axis letters in this module: b batch, c channels, t time frames, f frequency bins, n positions (time and frequency
together), e hyperedges, h heads, d channels of one head.

.. [1] Lei et al., YOLOv13: Real-Time Object Detection with Hypergraph-Enhanced Adaptive Visual Perception, 2025,
   arXiv 2506.17733.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.heads.hyperACE.convolutions import C3k, Conv, resize
from hunterFormsBS.kernels.seam import Layer


class HyperedgeGeneration(Layer):
    """Compute how much each position participates in each hyperedge.

    A hyperedge is a learned prototype plus an offset from the mean and the maximum over all positions. Participation is
    the softmax over positions of a position's similarity with it, averaged over heads.
    """

    def __init__(self, channels: int, *, num_hyperedges: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.global_proto = nn.Parameter(torch.empty(num_hyperedges, channels))
        self.context_mapper = nn.Linear(2 * channels, num_hyperedges * channels, bias=False)
        self.query_proj = nn.Linear(channels, channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the prototypes from a standard normal distribution."""
        nn.init.normal_(self.global_proto)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, n, c)` to `(b, e, n)`."""
        context = torch.cat((x.mean(dim=1), x.amax(dim=1)), dim=-1)
        moves = rearrange(self.context_mapper(context), "b (e c) -> b e c", c=x.shape[-1])
        prototypes = rearrange(self.global_proto + moves, "b e (h d) -> b h d e", h=self.num_heads)
        queries = rearrange(self.query_proj(x), "b n (h d) -> b h n d", h=self.num_heads)
        similarities: Tensor = queries @ prototypes * queries.shape[-1] ** -0.5
        return similarities.mean(dim=1).mT.softmax(dim=-1)


class HypergraphConvolution(Layer):
    """Positions to hyperedges and back, each with a Linear and SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W_e = nn.Linear(channels, channels, bias=False)
        self.W_v = nn.Linear(channels, channels, bias=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, participation: Tensor) -> Tensor:
        """Map `(b, n, c)` and `(b, e, n)` to `(b, n, c)`."""
        edges = self.act(self.W_e(participation @ x))
        return x + self.act(self.W_v(participation.mT @ edges))


class HypergraphComputation(Layer):
    """One exchange through hyperedges."""

    def __init__(self, channels: int, *, num_hyperedges: int, num_heads: int) -> None:
        super().__init__()
        self.adaptive_hyperedge_gen = HyperedgeGeneration(channels, num_hyperedges=num_hyperedges, num_heads=num_heads)
        self.hypergraph_conv = HypergraphConvolution(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`, `(b, c, t, f)`."""
        positions = rearrange(x, "b c t f -> b (t f) c")
        out = self.hypergraph_conv(positions, self.adaptive_hyperedge_gen(positions))
        return rearrange(out, "b (t f) c -> b c t f", t=x.shape[2])


class C3AH(Layer):
    """An exchange through hyperedges parallel to a shortcut, concatenated and fused."""

    def __init__(self, channels: int, *, num_hyperedges: int, num_heads: int) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels)
        self.cv2 = Conv(channels, channels)
        self.ahc = HypergraphComputation(channels, num_hyperedges=num_hyperedges, num_heads=num_heads)
        self.cv3 = Conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`, `(b, c, t, f)`."""
        return self.cv3(torch.cat((self.ahc(self.cv2(x)), self.cv1(x)), dim=1))


class HyperACE(Layer):
    """Fuse four resolutions: half of the channels through hyperedges, a quarter through convolutions.

    Parameters
    ----------
    channels : sequence of int
        Channels of the four inputs; the third's are those of the output, and its resolution is the output's.
    num_hyperedges, num_heads
        See `HyperedgeGeneration`.
    num_high_order, num_low_order : int
        Parallel exchanges, and consecutive convolutional blocks.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        num_hyperedges: int,
        num_heads: int,
        num_high_order: int,
        num_low_order: int,
    ) -> None:
        super().__init__()
        middle = channels[2]
        high, low = middle // 2, middle // 4
        self.parts = (high, low, middle - high - low)
        self.fuse_conv = Conv(sum(channels), middle)
        self.high_order_branch = nn.ModuleList(
            C3AH(high, num_hyperedges=num_hyperedges, num_heads=num_heads) for _ in range(num_high_order)
        )
        self.high_order_fuse = Conv(high * num_high_order, high)
        self.low_order_branch = nn.Sequential(*(C3k(low) for _ in range(num_low_order)))
        self.final_fuse = Conv(middle, middle)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Map four tensors `(b, c, t, f)` to one of the shape of the third."""
        time, freq = stages[2].shape[2:]
        fused = self.fuse_conv(torch.cat([resize(stage, (time, freq)) for stage in stages], dim=1))
        high, low, rest = torch.split(fused, list(self.parts), dim=1)
        exchanges = [branch(high) for branch in self.high_order_branch]
        high = self.high_order_fuse(torch.cat(exchanges, dim=1))
        return self.final_fuse(torch.cat((high, self.low_order_branch(low), rest), dim=1))
