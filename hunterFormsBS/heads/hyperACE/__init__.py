"""The HyperACE head: the masks of the MLPs plus those of a convolutional branch with hypergraph fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypedDict

from einops import rearrange
from torch import Tensor

from hunterFormsBS.heads.hyperACE.branch import SegmModel
from hunterFormsBS.heads.kind import HeadKind
from hunterFormsBS.heads.mlp import MaskEstimator, OptionsMLP
from hunterFormsBS.optionRow import Needs, Option, taken_by
from hunterFormsBS.printable import short_repr
from hunterFormsBS.theTypes import ParametersBranch
from hunterFormsBS.variantRow import HEAD, HEADS, NEVER_SILENT, Count, Reading, Size, Sizes, Variant

__all__ = ["HYPERACE", "HyperACEMaskEstimator", "OptionsHyperACE"]

_BRANCH = Needs("use_hyperACE=True", ("use_hyperACE",), any)

OF_VERSIONS = {1: {"k": 3, "l": 2, "num_hyperedges": 16}, 2: {"k": 2, "l": 1, "num_hyperedges": 32}}
"""Hypergraph branches, convolutional blocks next to them, and hyperedges, in each published version."""


class OptionsHyperACE(TypedDict, total=False):
    """Arguments of the model for this head, besides those of its MLPs."""

    segm_backbone_channels: Annotated[
        Sequence[int], Option(default=(64, 256, 384, 512, 768), least=16, most=65536, needs=_BRANCH)
    ]
    segm_base_depth: Annotated[int, Option(default=2, least=1, most=64, needs=_BRANCH)]
    segm_hyperace_k: Annotated[int | None, Option(default=None, least=1, most=64, needs=_BRANCH)]
    segm_hyperace_l: Annotated[int | None, Option(default=None, least=1, most=64, needs=_BRANCH)]
    segm_num_heads: Annotated[int, Option(default=8, least=1, most=1024, needs=_BRANCH, is_audible=True)]
    segm_num_hyperedges: Annotated[int | None, Option(default=None, least=1, most=4096, needs=_BRANCH)]
    segm_version: Annotated[Literal[1, 2], Option(default=2, needs=_BRANCH)]
    use_hyperACE: Annotated[bool, Option(default=False)]


class HyperACEMaskEstimator(MaskEstimator):
    """The mask of the MLPs plus that of a convolutional branch.

    Parameters
    ----------
    dim, dim_inputs, mask_estimator_depth, mlp_expansion_factor
        See `MaskEstimator`.
    branch : ParametersBranch
        Of the branch.
    audio_channels : int
        Audio channels.
    """

    def __init__(
        self,
        dim: int,
        dim_inputs: Sequence[int],
        branch: ParametersBranch,
        *,
        audio_channels: int,
        mask_estimator_depth: int = 1,
        mlp_expansion_factor: int = 4,
    ) -> None:
        super().__init__(
            dim, dim_inputs, mask_estimator_depth=mask_estimator_depth, mlp_expansion_factor=mlp_expansion_factor
        )
        numbers = 2 * audio_channels
        num_bins = sum(dim_inputs) // numbers
        self.segm = SegmModel(dim, numbers, num_bands=len(dim_inputs), num_bins=num_bins, parameters=branch)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, band, d)` to `(b, t, sum of widths)`."""
        branch = self.segm(rearrange(x, "b t f d -> b d t f"))
        return super().forward(x) + rearrange(branch, "b c t f -> b t (f c)")


def build(dim: int, dim_inputs: Sequence[int], arguments: Mapping[str, Any]) -> HyperACEMaskEstimator:
    """Return the head that the model's arguments describe."""
    usual = OF_VERSIONS[arguments["segm_version"]]
    given = {name: arguments[name] for name in ("segm_hyperace_k", "segm_hyperace_l", "segm_num_hyperedges")}
    numbers = {
        name: next(one for end, one in usual.items() if name.endswith(end)) if value is None else value
        for name, value in given.items()
    }
    return HyperACEMaskEstimator(
        dim,
        dim_inputs,
        ParametersBranch(**taken_by(ParametersBranch, {**arguments, **numbers})),
        audio_channels=2 if arguments["stereo"] else 1,
        **taken_by(OptionsMLP, arguments),
    )


def check(arguments: Mapping[str, Any]) -> None:
    """Refuse invalid channels of the stages."""
    channels, heads = arguments["segm_backbone_channels"], arguments["segm_num_heads"]
    if len(channels) != 5 or channels[3] // 2 % heads:
        raise ValueError(
            f"segm_backbone_channels={short_repr(channels)} with segm_num_heads={heads}: pass the channels of five "
            "stages, of which half of the fourth's is a multiple of the heads."
        )


_HYPEREDGES: Final = rf"{HEAD}segm\.hyperace\."
_STAGES: Final = ("stem", r"p2\.0", r"p3\.0", r"p4\.0", r"p5\.0")
_HYPERACE: Final[Mapping[str, Reading]] = MappingProxyType(
    {
        "use_hyperACE": True,
        "segm_backbone_channels": Sizes(tuple(rf"{HEAD}segm\.backbone\.{stage}\.pwconv\.weight" for stage in _STAGES)),
        "segm_base_depth": Count(rf"{HEAD}segm\.backbone\.p2\.1\.m\.m\.(\d+)\."),
        "segm_hyperace_k": Count(rf"{_HYPEREDGES}high_order_branch\.(\d+)\."),
        "segm_hyperace_l": Count(rf"{_HYPEREDGES}low_order_branch\.(\d+)\."),
        "segm_num_hyperedges": Size(rf"{_HYPEREDGES}high_order_branch\.0\.ahc\.adaptive_hyperedge_gen\.global_proto"),
    }
)
_VERSION_2: Final = Variant(
    name="HyperACE v2",
    pattern=r"^mask_estimators\.\d+\.segm\.upsample_head\.block1\.out_conv\.",
    example="mask_estimators.0.segm.upsample_head.block1.out_conv.blocks.0.tfc1.0.weight",
    options="use_hyperACE=True",
    switches=("use_hyperACE",),
    readings={**_HYPERACE, "segm_version": 2},
    keys=rf"{HEADS}segm\.(?:backbone|hyperace|decoder|upsample_head)\.\S+",
    overlapping=False,
    defaults=NEVER_SILENT,
    published="unwa",
)
_VERSION_1: Final = replace(
    _VERSION_2,
    name="HyperACE v1",
    pattern=r"^mask_estimators\.\d+\.segm\.",
    example="mask_estimators.0.segm.backbone.stem.dwconv.weight",
    options="use_hyperACE=True, segm_version=1",
    readings={**_HYPERACE, "segm_version": 1},
)

HYPERACE = HeadKind("use_hyperACE", build, check, (_VERSION_2, _VERSION_1))
