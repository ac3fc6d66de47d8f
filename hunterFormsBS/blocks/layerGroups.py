"""The axes that attention runs along, and the transformers that run there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hunterFormsBS.attend import Transformer
from hunterFormsBS.blocks.positions import PolarEmbedding, RotaryEmbedding
from hunterFormsBS.blocks.valueResidual import ValueResidualMix
from hunterFormsBS.theTypes import ParametersTransformer

SEQUENCES = {"linear": "b (t f) d", "time": "(b f) t d", "frequency": "(b t) f d"}
"""How tokens, `b t f d`, line up for the transformer of each axis, in the order of the axes in a layer group."""


def layer_groups(
    dim: int,
    depth: int,
    axis_depths: Mapping[str, int],
    use_pope: bool,
    mixes: Mapping[str, ValueResidualMix | None],
    shared: ParametersTransformer,
) -> nn.ModuleList:
    """Build `depth` groups of one transformer for each axis; those of an axis share one position embedding.

    Parameters
    ----------
    dim : int
        Features of a token.
    depth : int
        Groups.
    axis_depths : mapping
        Attention and feedforward pairs of each axis in `SEQUENCES`; an axis with none has no transformer.
    use_pope : bool
        Polar instead of rotary position embedding.
    mixes : mapping
        How values mix, on each axis, in the groups after the first.
    shared : ParametersTransformer
        The other arguments of every `Transformer`.
    """
    positions: dict[str, dict[str, Any]] = {"linear": {"linear_attn": True}}
    for axis in ("time", "frequency"):
        positions[axis] = (
            {"pope_embed": PolarEmbedding(shared["dim_head"], shared["heads"])}
            if use_pope
            else {"rotary_embed": RotaryEmbedding(shared["dim_head"])}
        )
    return nn.ModuleList(
        nn.ModuleList(
            Transformer(
                dim,
                depth=axis_depth,
                value_residual_mix=mixes[axis] if group else None,
                keep_values=group == 0 and mixes[axis] is not None,
                **positions[axis],
                **shared,
            )
            for axis, axis_depth in axis_depths.items()
            if axis_depth
        )
        for group in range(depth)
    )
