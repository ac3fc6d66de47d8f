"""The axes of attention, and the transformers or Conformers along them."""

from __future__ import annotations

from torch import nn

from hunterFormsBS.blocks.conformer import Conformer
from hunterFormsBS.blocks.positions import PolarEmbedding, PositionEmbedding, RotaryEmbedding
from hunterFormsBS.blocks.sharedBias import SharedBias
from hunterFormsBS.blocks.siamese import siamese_groups
from hunterFormsBS.blocks.transformer import Transformer
from hunterFormsBS.operations.valueResidual import mixes_of_axes
from hunterFormsBS.theTypes import ParametersConvolution, ParametersLayerGroups, ParametersTransformer

SEQUENCES = {"linear": "b (t f) d", "time": "(b f) t d", "frequency": "(b t) f d"}
"""The einops pattern of tokens, from `b t f d`, for the transformer of each axis."""


def layer_groups(
    dim: int,
    parameters: ParametersTransformer,
    groups: ParametersLayerGroups,
    convolution: ParametersConvolution = ParametersConvolution(),  # noqa: B008  # it cannot change
    shared_bias: SharedBias | None = None,
) -> nn.ModuleList:
    """Build groups of one transformer or Conformer per axis; those of an axis share a position embedding.

    Parameters
    ----------
    dim : int
        Features of a token.
    parameters : ParametersTransformer
        Of every transformer; an attention window applies only along time.
    groups : ParametersLayerGroups
        Number of groups, and what each contains.
    convolution : ParametersConvolution, default ParametersConvolution()
        Of every Conformer.
    shared_bias : SharedBias, default None
        Of every softmax attention.
    """
    heads, dim_head = parameters.attention.heads, parameters.attention.dim_head
    positions: dict[str, PositionEmbedding | None] = {
        axis: PolarEmbedding(dim_head, heads) if groups.use_pope else RotaryEmbedding(dim_head)
        for axis in ("time", "frequency")
        if groups.use_rotary_pos
    }
    if groups.siamese:
        both = ("time", "frequency")
        depths, embeddings = [groups.transformer_depths[axis] for axis in both], [positions[axis] for axis in both]
        return siamese_groups(dim, parameters, depth=groups.depth, axis_depths=depths, positions=embeddings)
    mixes = mixes_of_axes(groups.use_value_residual_learning, groups.learned_value_residual_mix)
    without_window = parameters._replace(attention=parameters.attention._replace(wsa_window_len=None, n_wsa_sinks=0))

    def along(axis: str, group: int) -> nn.Module:
        if depth := groups.conformer_depths[axis]:
            return Conformer(
                dim, parameters, convolution, depth=depth, positions=positions[axis], shared_bias=shared_bias
            )
        return Transformer(
            dim,
            parameters if axis == "time" else without_window,
            depth=groups.transformer_depths[axis],
            linear_attn=axis == "linear",
            positions=positions.get(axis),
            value_residual_mix=mixes[axis] if group else None,
            keep_values=group == 0 and mixes[axis] is not None,
            adds_input=group == 0 if groups.residual_in_first_group_only else None,
            shared_bias=None if axis == "linear" else shared_bias,
            sinusoidal=not groups.use_rotary_pos,
        )

    return nn.ModuleList(nn.ModuleList(along(axis, group) for axis in groups.axes) for group in range(groups.depth))
