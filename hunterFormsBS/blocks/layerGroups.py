"""The axes that attention runs along, and the transformers or Conformers that run there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hunterFormsBS.blocks.conformer import Conformer
from hunterFormsBS.blocks.positions import PolarEmbedding, PositionEmbedding, RotaryEmbedding
from hunterFormsBS.blocks.sharedBias import SharedBias
from hunterFormsBS.blocks.siamese import siamese_groups
from hunterFormsBS.blocks.transformer import Transformer
from hunterFormsBS.blocks.valueResidual import ValueResidualMix
from hunterFormsBS.theTypes import ParametersConvolution, ParametersTransformer

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
    conformer_depths: Mapping[str, int],
    convolution: ParametersConvolution,
    shared_bias: SharedBias | None = None,
    residual_in_first_group_only: bool = False,
    siamese: bool = False,
    use_rotary_pos: bool = True,
) -> nn.ModuleList:
    """Build `depth` groups of one transformer or Conformer for each axis; those of an axis share their positions.

    Parameters
    ----------
    dim : int
        Features of a token.
    parameters : ParametersTransformer
        Of every transformer; a window of attention is that of those along time.
    depth : int
        Groups.
    axis_depths, conformer_depths : mapping
        Layers of the transformer and of the Conformer on each axis in `SEQUENCES`; one of the two is 0, or both.
    use_pope : bool
        Polar instead of rotary position embedding.
    mixes : mapping
        How values mix, on each axis, in the groups after the first.
    convolution : ParametersConvolution
        Of every Conformer.
    shared_bias : SharedBias, optional
        Of every softmax attention.
    residual_in_first_group_only, siamese, use_rotary_pos : bool
        See `hunterFormsBS.bandSplitRotator.BandSplitRotator`.
    """
    heads, dim_head = parameters.attention.heads, parameters.attention.dim_head
    positions: dict[str, PositionEmbedding | None] = {
        axis: PolarEmbedding(dim_head, heads) if use_pope else RotaryEmbedding(dim_head)
        for axis in ("time", "frequency")
        if use_rotary_pos
    }
    if siamese:
        both = ("time", "frequency")
        depths, embeddings = [axis_depths[axis] for axis in both], [positions[axis] for axis in both]
        return siamese_groups(dim, parameters, depth=depth, axis_depths=depths, positions=embeddings)

    def along(axis: str, group: int) -> nn.Module:
        if conformer_depths.get(axis):
            return Conformer(
                dim,
                parameters,
                convolution,
                depth=conformer_depths[axis],
                positions=positions[axis],
                shared_bias=shared_bias,
            )
        without_window = parameters.attention._replace(wsa_window_len=None, n_wsa_sinks=0)
        return Transformer(
            dim,
            parameters if axis == "time" else parameters._replace(attention=without_window),
            depth=axis_depths[axis],
            linear_attn=axis == "linear",
            positions=positions.get(axis),
            value_residual_mix=mixes[axis] if group else None,
            keep_values=group == 0 and mixes[axis] is not None,
            adds_input=group == 0 if residual_in_first_group_only else None,
            shared_bias=None if axis == "linear" else shared_bias,
            sinusoidal=not use_rotary_pos,
        )

    axes = axes_of(axis_depths, conformer_depths)
    return nn.ModuleList(nn.ModuleList(along(axis, group) for axis in axes) for group in range(depth))


def axes_of(axis_depths: Mapping[str, int], conformer_depths: Mapping[str, int]) -> tuple[str, ...]:
    """Return the axes that something runs along, in the order of a layer group."""
    return tuple(axis for axis in SEQUENCES if axis_depths.get(axis) or conformer_depths.get(axis))
