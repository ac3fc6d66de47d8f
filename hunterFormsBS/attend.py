"""Transformer blocks: attention, feedforward, and the transformer that runs them along one axis.

Axis letters in this module: b sequences, n positions, h heads, d features, e features of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from hunterFormsBS.blocks.attend import Attend
from hunterFormsBS.blocks.feedForward import FeedForward
from hunterFormsBS.blocks.norm import RMSNorm, at_least_float32, rms_norm
from hunterFormsBS.blocks.positions import PolarEmbedding, RotaryEmbedding
from hunterFormsBS.blocks.recompute import checkpointed
from hunterFormsBS.blocks.residual import has_streams, residual_wrapper
from hunterFormsBS.blocks.valueResidual import ValueResidualMix, mix_values
from hunterFormsBS.kernels.linear import can_bypass, linear_of, packing_weights
from hunterFormsBS.kernels.seam import is_eager_on_cpu, is_plain
from hunterFormsBS.theTypes import FlashAttentionConfig

Values: TypeAlias = tuple[Tensor, ...]
"""Values of a transformer's first attention, `(b, h, n, e)`, one tensor for each block of sequences."""

TOKENS_PER_BLOCK = 2048
"""On a CPU a transformer runs this many tokens at a time, so that what passes between its layers stays in cache."""


class Attention(nn.Module):
    """Multi-head self-attention with position embedding, one sigmoid gate per head and position, and value residual.

    Parameters
    ----------
    dim : int
        Features in and out.
    heads, dim_head : int
        Heads, and features of each.
    attn_dropout, flash_attn, sage_attention, scale
        See `Attend`; `attn_dropout` also follows the output projection, and `scale` is `dim_head ** -0.5` by default.
    rotary_embed, pope_embed : optional
        Position embedding, at most one of them, shared among layers.
    value_residual_mix : {'learned', 'constant', 'swapped'}, optional
        How values are mixed with those of the first layer (see `mix_values`): by a learned factor per head and
        position, or halfway. None: they are not.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        dim_head: int = 64,
        attn_dropout: float = 0.0,
        flash_attn: bool | FlashAttentionConfig = True,
        sage_attention: bool = False,
        scale: float | None = None,
        rotary_embed: RotaryEmbedding | None = None,
        pope_embed: PolarEmbedding | None = None,
        value_residual_mix: ValueResidualMix | None = None,
    ) -> None:
        super().__init__()
        if rotary_embed is not None and pope_embed is not None:
            raise ValueError(
                "I received both rotary_embed and pope_embed, and positions enter only once: pass one of them."
            )
        self.heads = heads
        self.rotary_embed = rotary_embed
        self.pope_embed = pope_embed
        self.value_residual_mix: ValueResidualMix | None = value_residual_mix
        self.norm = RMSNorm(dim)
        self.attend = Attend(
            attn_dropout=attn_dropout,
            flash_attn=flash_attn,
            sage_attention=sage_attention,
            scale=dim_head**-0.5 if scale is None else scale,
        )
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_value_residual_mix = nn.Linear(dim, heads) if value_residual_mix in ("learned", "swapped") else None
        self.to_gates = nn.Linear(dim, heads)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim, bias=False), nn.Dropout(attn_dropout))

    def position_table(self, length: int) -> tuple[Tensor, ...] | None:
        """Return the position embedding's table for sequences of `length`, None without a position embedding."""
        embedding = self.rotary_embed or self.pope_embed
        return None if embedding is None else embedding.table(length)

    def forward(
        self, x: Tensor, first_values: Tensor | None = None, table: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend along the second axis.

        Parameters
        ----------
        x : Tensor
            `(b, n, d)`.
        first_values : Tensor, optional
            `(b, h, n, e)`, values of the first layer; needed when there is a `value_residual_mix`.
        table : tuple of Tensor, optional
            `position_table(n)`, when the caller has it already.

        Returns
        -------
        out : Tensor
            `(b, n, d)`.
        values : Tensor
            `(b, h, n, e)`, this layer's values before mixing.
        """
        table = self.position_table(x.shape[1]) if table is None else table
        qkv, gates, *mix = self._project(x)
        q, k, values = self._place(qkv, table)
        v = values
        if self.value_residual_mix is not None:
            if first_values is None:
                raise ValueError("This layer mixes its values with the first layer's: pass `first_values`.")
            factor = rearrange(mix[0], "b n h -> b h n 1").sigmoid() if mix else 0.5
            v = mix_values(v, first_values, factor, self.value_residual_mix)
        out = rearrange(self.attend(q, k, v), "b h n e -> b n h e")
        return self._gate_and_merge(out, gates), values

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the three (or two) linear maps of the normed input: qkv, gates and, if learned, mixing factors."""
        heads = [m for m in (self.to_qkv, self.to_gates, self.to_value_residual_mix) if m is not None]
        if can_bypass((self.norm, RMSNorm), *((m, nn.Linear) for m in heads)):
            return linear_of(rms_norm, (x, self.norm.gamma), heads)
        normed = self.norm(x)
        return tuple(m(normed) for m in heads)

    def _place(self, qkv: Tensor, table: tuple[Tensor, ...] | None) -> tuple[Tensor, Tensor, Tensor]:
        qkv = rearrange(qkv, "b n (three h e) -> b n three h e", three=3, h=self.heads)
        embedding = self.rotary_embed or self.pope_embed
        if embedding is None or table is None:
            q, k, v = rearrange(qkv, "b n three h e -> three b h n e").unbind(0)
            return q, k, v
        return embedding.place(qkv, table, may_overwrite=is_plain(self.to_qkv, nn.Linear))

    def _gate_and_merge(self, out: Tensor, gates: Tensor) -> Tensor:
        """Scale each head, `out` `(b, n, h, e)`, by the sigmoid of `gates`, `(b, n, h)`, and project to `(b, n, d)`."""
        project, dropout = self.to_out
        if can_bypass((self.to_out, nn.Sequential), (project, nn.Linear), (dropout, nn.Dropout)):
            (merged,) = linear_of(gated_heads, (out, gates), (cast(nn.Linear, project),))
            return cast(Tensor, dropout(merged))
        return cast(Tensor, self.to_out(gated_heads(out, gates)))


def gated_heads(out: Tensor, gates: Tensor) -> Tensor:
    """Return `(b, n, h · e)`: heads, `(b, n, h, e)`, each scaled by the sigmoid of its gate, `(b, n, h)`."""
    return (out * gates.sigmoid()[..., None]).flatten(-2)


class LinearAttention(nn.Module):
    """Cross-covariance attention: features attend to features, so the cost is linear in the length [1]_.

    Queries and keys are normalised along the sequence; the attention matrix is `(e, e)` per head.

    Parameters
    ----------
    dim, heads, dim_head, attn_dropout, value_residual_mix
        See `Attention`.
    scale : float
        Factor on the scores. The attention matrix is small, so it is always computed explicitly.

    References
    ----------
    .. [1] El-Nouby et al., XCiT: Cross-Covariance Image Transformers, NeurIPS 2021, arXiv 2106.09681.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        dim_head: int = 64,
        attn_dropout: float = 0.0,
        scale: float = 8.0,
        value_residual_mix: ValueResidualMix | None = None,
    ) -> None:
        super().__init__()
        self.value_residual_mix: ValueResidualMix | None = value_residual_mix
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Sequential(
            nn.Linear(dim, 3 * heads * dim_head, bias=False),
            Rearrange("b n (three h e) -> three b h e n", three=3, h=heads),
        )
        self.temperature = nn.Parameter(torch.zeros(heads, 1, 1))
        self.attend = Attend(attn_dropout=attn_dropout, flash_attn=False, scale=scale)
        self.to_value_residual_mix = nn.Linear(dim, heads) if value_residual_mix in ("learned", "swapped") else None
        self.to_out = nn.Sequential(Rearrange("b h e n -> b n (h e)"), nn.Linear(heads * dim_head, dim, bias=False))

    def forward(self, x: Tensor, first_values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Attention.forward`, but values are `(b, h, e, n)`."""
        normed = self.norm(x)
        q, k, values = self.to_qkv(normed).unbind(0)
        v = values
        if self.value_residual_mix is not None:
            if first_values is None:
                raise ValueError("This layer mixes its values with the first layer's: pass `first_values`.")
            mix = self.to_value_residual_mix
            factor = 0.5 if mix is None else rearrange(mix(normed), "b n h -> b h 1 n").sigmoid()
            v = mix_values(v, first_values, factor, self.value_residual_mix)
        q, k = (F.normalize(t.to(at_least_float32(t.dtype)), dim=-1).to(t.dtype) for t in (q, k))
        out = self.attend(q * self.temperature.exp().to(q.dtype), k, v)
        return cast(Tensor, self.to_out(out)), values


class Transformer(nn.Module):
    """Attention and feedforward, `depth` times, each with a residual connection, along one axis.

    Sequences do not see one another, so on a CPU they run in blocks that fit its cache.

    Parameters
    ----------
    dim : int
        Features.
    depth : int
        Number of attention and feedforward pairs.
    linear_attn : bool
        Use `LinearAttention`, which has no position embedding.
    rotary_embed, pope_embed, value_residual_mix, heads, dim_head, attn_dropout, flash_attn, sage_attention, scale
        See `Attention`.
    ff_mult, ff_dropout
        See `FeedForward`.
    norm_output : bool
        Normalise what comes out.
    keep_values : bool
        Return the first layer's values, for the layer groups that follow.
    num_residual_streams, num_residual_fracs, mc_hyper_conn_sinkhorn_iters
        See `hunterFormsBS.blocks.residual.residual_wrapper`.
    use_torch_checkpoint : bool
        In the backward pass recompute each block of sequences instead of storing what happens inside it.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        linear_attn: bool = False,
        rotary_embed: RotaryEmbedding | None = None,
        pope_embed: PolarEmbedding | None = None,
        value_residual_mix: ValueResidualMix | None = None,
        keep_values: bool = False,
        heads: int = 8,
        dim_head: int = 64,
        attn_dropout: float = 0.0,
        flash_attn: bool | FlashAttentionConfig = True,
        sage_attention: bool = False,
        scale: float | None = None,
        ff_mult: int = 4,
        ff_dropout: float = 0.0,
        norm_output: bool = True,
        num_residual_streams: int = 1,
        num_residual_fracs: int = 1,
        mc_hyper_conn_sinkhorn_iters: int | None = None,
        use_torch_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.keep_values = keep_values
        self.use_torch_checkpoint = use_torch_checkpoint
        self.num_residual_streams = num_residual_streams
        self.wrapped = has_streams(num_residual_streams, num_residual_fracs)

        make_attention: Callable[[], nn.Module] = partial(
            Attention,
            dim,
            heads=heads,
            dim_head=dim_head,
            attn_dropout=attn_dropout,
            flash_attn=flash_attn,
            sage_attention=sage_attention,
            scale=scale,
            rotary_embed=rotary_embed,
            pope_embed=pope_embed,
            value_residual_mix=value_residual_mix,
        )
        if linear_attn:
            make_attention = partial(
                LinearAttention,
                dim,
                heads=heads,
                dim_head=dim_head,
                attn_dropout=attn_dropout,
                value_residual_mix=value_residual_mix,
            )
        sublayers: list[nn.Module] = []
        for _pair in range(depth):
            sublayers += [make_attention(), FeedForward(dim, ff_mult=ff_mult, ff_dropout=ff_dropout)]
        if self.wrapped:
            wrap = residual_wrapper(
                dim,
                num_residual_streams=num_residual_streams,
                num_residual_fracs=num_residual_fracs,
                mc_hyper_conn_sinkhorn_iters=mc_hyper_conn_sinkhorn_iters,
            )
            sublayers = [wrap(sublayer, index) for index, sublayer in enumerate(sublayers)]
        self.layers = nn.ModuleList(map(nn.ModuleList, zip(sublayers[::2], sublayers[1::2], strict=True)))
        self.norm = RMSNorm(dim) if norm_output else nn.Identity()

    def forward(self, x: Tensor, first_values: Values = ()) -> tuple[Tensor, Values]:
        """Transform every sequence.

        Parameters
        ----------
        x : Tensor
            `(b, n, d)`, with the streams of an item side by side in b. A transposed view costs nothing more.
        first_values : tuple of Tensor, optional
            What the transformer of this axis in the first layer group returned.

        Returns
        -------
        x : Tensor
            `(b, n, d)`, contiguous.
        values : tuple of Tensor
            Values of the first attention, one `(b, h, n, e)` for each block of sequences; empty unless `keep_values`.
        """
        run = checkpointed(self._run_layers) if self.use_torch_checkpoint else self._run_layers
        table = self._position_table(x.shape[1])
        outs: list[Tensor] = []
        values: list[Tensor] = []
        with packing_weights() if is_eager_on_cpu(x) else nullcontext():
            for index, block in enumerate(self._blocks(x)):
                out, value = run(block, first_values[index] if first_values else None, table)
                outs.append(out)
                if self.keep_values:
                    # A view would keep queries and keys alive too; where gradients are recorded they live anyway.
                    values.append(value if value.requires_grad else value.contiguous())
        return torch.cat(outs) if len(outs) > 1 else outs[0], tuple(values)

    def _blocks(self, x: Tensor) -> Iterable[Tensor]:
        """Divide the sequences into cache-sized blocks on a CPU; elsewhere launches cost more than memory traffic."""
        if not is_eager_on_cpu(x):
            return (x,)
        streams = self.num_residual_streams
        sequences = max(1, TOKENS_PER_BLOCK // (x.shape[1] * streams)) * streams
        # One at a time into order: each linear map of the first layer would copy a transposed view for itself.
        return map(Tensor.contiguous, torch.split(x, sequences))

    def _position_table(self, length: int) -> tuple[Tensor, ...] | None:
        """Return the table that all layers share; None where the layers look after themselves."""
        first = next(iter(cast(nn.ModuleList, self.layers[0])))
        attention = first.branch if self.wrapped else first
        return attention.position_table(length) if isinstance(attention, Attention) else None

    def _run_layers(
        self, x: Tensor, first_values: Tensor | None, table: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        values: Tensor | None = None
        keywords = {} if table is None else {"table": table}
        for attention, feedforward in cast("Iterable[tuple[nn.Module, nn.Module]]", self.layers):
            out, layer_values = attention(x, first_values=first_values, **keywords)
            values = layer_values if values is None else values
            x = out if self.wrapped else x + out
            x = feedforward(x) if self.wrapped else x + feedforward(x)
        return self.norm(x), cast(Tensor, values)
