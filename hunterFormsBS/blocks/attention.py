"""The attention half of a transformer layer.

Axis letters in this module: b sequences, n positions, h heads, d features, e features of one head.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from hunterFormsBS.blocks.attend import Attend
from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.blocks.positions import PositionEmbedding
from hunterFormsBS.blocks.sharedBias import SharedBias
from hunterFormsBS.kernels.attention import attention
from hunterFormsBS.kernels.seam import Layer, served_by
from hunterFormsBS.operations.norm import at_least_float32
from hunterFormsBS.operations.valueResidual import mix_values
from hunterFormsBS.theTypes import ParametersAttention, ValueResidualMix


class Attention(Layer):
    """Multi-head self-attention with position embedding, one sigmoid gate per head and position, and value residual.

    Parameters
    ----------
    dim : int
        Features in and out.
    parameters : ParametersAttention
        Heads, dropout, scale and the kernels allowed.
    positions : PositionEmbedding, default None
        Shared among layers, and registered under its own `name`.
    value_residual_mix : {'learned', 'constant', 'swapped'}, default None
        How to mix values with those of the first layer (see `mix_values`): by a learned factor per head and position,
        or halfway. None: not at all.
    shared_bias : SharedBias, default None
        Biases of the first and of the last projection, shared among layers. None: there are none.
    """

    def __init__(
        self,
        dim: int,
        parameters: ParametersAttention = ParametersAttention(),  # noqa: B008  # it cannot change
        *,
        positions: PositionEmbedding | None = None,
        value_residual_mix: ValueResidualMix | None = None,
        shared_bias: SharedBias | None = None,
    ) -> None:
        super().__init__()
        self.has_shared_bias = shared_bias is not None
        self.heads = heads = parameters.heads
        dim_inner = heads * parameters.dim_head
        self.value_residual_mix: ValueResidualMix | None = value_residual_mix
        self.positions_name = None if positions is None else positions.name
        if positions is not None:
            self.add_module(positions.name, positions)
        self.attend = Attend(
            attn_dropout=parameters.attn_dropout,
            flash_attn=parameters.flash_attn,
            sage_attention=parameters.sage_attention,
            scale=parameters.dim_head**-0.5 if parameters.scale is None else parameters.scale,
            wsa_window_len=parameters.wsa_window_len,
            n_wsa_sinks=parameters.n_wsa_sinks,
        )
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim_inner, bias=self.has_shared_bias)
        # In upstream's order, which differs in its Mel models.
        self.to_value_residual_mix = nn.Linear(dim, heads) if value_residual_mix == "learned" else None
        self.to_gates = nn.Linear(dim, heads)
        if value_residual_mix == "swapped":
            self.to_value_residual_mix = nn.Linear(dim, heads)
        project = nn.Linear(dim_inner, dim, bias=self.has_shared_bias)
        self.to_out = nn.Sequential(project, nn.Dropout(parameters.attn_dropout))
        if shared_bias is not None:
            self.to_qkv.bias, project.bias = shared_bias

    @property
    def positions(self) -> PositionEmbedding | None:
        """The position embedding."""
        return None if self.positions_name is None else cast(PositionEmbedding, getattr(self, self.positions_name))

    @served_by(attention)
    def forward(self, x: Tensor, first_values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attend along the second axis.

        Parameters
        ----------
        x : Tensor
            `(b, n, d)`.
        first_values : Tensor, default None
            `(b, h, n, e)`, values of the first layer; required with a `value_residual_mix`.

        Returns
        -------
        out : Tensor
            `(b, n, d)`.
        values : Tensor
            `(b, h, n, e)`, this layer's values before mixing.
        """
        normed = self.norm(x)
        qkv = rearrange(self.to_qkv(normed), "b n (three h e) -> three b h n e", three=3, h=self.heads)
        q, k, values = qkv.unbind(0)
        if self.positions is not None:
            q, k = self.positions(q, k)
        mix = None if self.to_value_residual_mix is None else self.to_value_residual_mix(normed)
        v = mix_values(values, first_values, mix, self.value_residual_mix)
        gates = rearrange(self.to_gates(normed).sigmoid(), "b n h -> b h n 1")
        out = self.attend(q, k, v) * gates
        return self.to_out(rearrange(out, "b h n e -> b n (h e)")), values


class LinearAttention(Layer):
    """Cross-covariance attention: features attend to features, so the cost is linear in the length [1]_.

    Queries and keys are normalised along the sequence; the attention matrix is `(e, e)` per head.

    Parameters
    ----------
    dim, value_residual_mix
        See `Attention`.
    parameters : ParametersAttention
        Heads and dropout are used.
    scale : float
        Factor on the scores. The attention matrix is small, so it is always computed explicitly.

    References
    ----------
    .. [1] El-Nouby et al., XCiT: Cross-Covariance Image Transformers, NeurIPS 2021, arXiv 2106.09681.
    """

    def __init__(
        self,
        dim: int,
        parameters: ParametersAttention = ParametersAttention(),  # noqa: B008  # it cannot change
        *,
        scale: float = 8.0,
        value_residual_mix: ValueResidualMix | None = None,
    ) -> None:
        super().__init__()
        heads = parameters.heads
        dim_inner = heads * parameters.dim_head
        self.value_residual_mix: ValueResidualMix | None = value_residual_mix
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Sequential(
            nn.Linear(dim, 3 * dim_inner, bias=False),
            Rearrange("b n (three h e) -> three b h e n", three=3, h=heads),
        )
        self.temperature = nn.Parameter(torch.empty(heads, 1, 1))
        self.attend = Attend(attn_dropout=parameters.attn_dropout, flash_attn=False, scale=scale)
        self.to_value_residual_mix = nn.Linear(dim, heads) if value_residual_mix in ("learned", "swapped") else None
        self.to_out = nn.Sequential(Rearrange("b h e n -> b n (h e)"), nn.Linear(dim_inner, dim, bias=False))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the logarithm of the temperature to 0."""
        nn.init.zeros_(self.temperature)

    @served_by()
    def forward(self, x: Tensor, first_values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Attention.forward`."""
        normed = self.norm(x)
        q, k, v = self.to_qkv(normed).unbind(0)
        values = v.mT
        mix = None if self.to_value_residual_mix is None else self.to_value_residual_mix(normed)
        v = mix_values(values, first_values, mix, self.value_residual_mix).mT
        q, k = (F.normalize(t.to(at_least_float32(t.dtype)), dim=-1).to(t.dtype) for t in (q, k))
        out = self.attend(q * self.temperature.exp().to(q.dtype), k, v)
        return self.to_out(out), values
