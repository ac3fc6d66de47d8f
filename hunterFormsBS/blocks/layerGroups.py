"""The axes that attention runs along, and the transformers that run there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hunterFormsBS.blocks.positions import PolarEmbedding, PositionEmbedding, RotaryEmbedding
from hunterFormsBS.blocks.transformer import Transformer
from hunterFormsBS.blocks.valueResidual import ValueResidualMix
from hunterFormsBS.theTypes import ParametersTransformer

SEQUENCES = {"linear": "b (t f) d", "time": "(b f) t d", "frequency": "(b t) f d"}
"""How tokens, `b t f d`, line up for the transformer of each axis, in the order of the axes in a layer group."""


def layer_groups(
    dim: int,
    parameters: ParametersTransformer,
    *,
    depth: int,
    axis_depths: Mapping[str, int],
    use_pope: bool,
    mixes: Mapping[str, ValueResidualMix | None],
) -> nn.ModuleList:
    """Build `depth` groups of one transformer for each axis; those of an axis share one position embedding.

    Parameters
    ----------
    dim : int
        Features of a token.
    parameters : ParametersTransformer
        Of every transformer.
    depth : int
        Groups.
    axis_depths : mapping
        Attention and feedforward pairs of each axis in `SEQUENCES`; an axis with none has no transformer.
    use_pope : bool
        Polar instead of rotary position embedding.
    mixes : mapping
        How values mix, on each axis, in the groups after the first.
    """
    heads, dim_head = parameters.attention.heads, parameters.attention.dim_head
    positions: dict[str, PositionEmbedding | None] = {
        axis: PolarEmbedding(dim_head, heads) if use_pope else RotaryEmbedding(dim_head)
        for axis in ("time", "frequency")
    }
    return nn.ModuleList(
        nn.ModuleList(
            Transformer(
                dim,
                parameters,
                depth=axis_depth,
                linear_attn=axis == "linear",
                positions=positions.get(axis),
                value_residual_mix=mixes[axis] if group else None,
                keep_values=group == 0 and mixes[axis] is not None,
            )
            for axis, axis_depth in axis_depths.items()
            if axis_depth
        )
        for group in range(depth)
    )
