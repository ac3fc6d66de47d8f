"""The mask head of Large-Inst v2: transformers along time and along frequency before the MLPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypedDict

from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.blocks.positions import RotaryEmbedding
from hunterFormsBS.blocks.transformer import Transformer
from hunterFormsBS.containers import nested
from hunterFormsBS.heads.kind import HeadKind
from hunterFormsBS.heads.mlp import MaskEstimator, OptionsMLP
from hunterFormsBS.optionRow import Needs, Option, taken_by
from hunterFormsBS.theTypes import ParametersAttention, ParametersTransformer
from hunterFormsBS.variantRow import ATTENTION_KEYS, FEED_FORWARD_KEYS, HEAD, HEADS, NEVER_SILENT, Count, Size, Variant

_TRANSFORMERS = Needs("mask_transformer_depth of at least 1", ("mask_transformer_depth",), any)


class OptionsAxial(TypedDict, total=False):
    """Arguments of the model for this head, besides those of its MLPs."""

    mask_transformer_depth: Annotated[int, Option(default=0, most=64, excludes=("use_hyperACE",))]
    mask_transformer_dim_head: Annotated[int, Option(default=64, least=1, most=4096, needs=_TRANSFORMERS)]
    mask_transformer_heads: Annotated[int, Option(default=8, least=1, most=4096, needs=_TRANSFORMERS)]


class AxialMaskEstimator(MaskEstimator):
    """Transformers along time and along frequency, and RMSNorm, before the MLPs.

    Parameters
    ----------
    dim, dim_inputs, mask_estimator_depth, mlp_expansion_factor
        See `MaskEstimator`.
    attention : ParametersAttention
        Heads, features of a head, and the attention backends.
    mask_transformer_depth : int
        Pairs of one-layer transformers.
    """

    def __init__(
        self,
        dim: int,
        dim_inputs: Sequence[int],
        *,
        mask_transformer_depth: int,
        attention: ParametersAttention = ParametersAttention(),  # noqa: B008  # it cannot change
        mask_estimator_depth: int = 1,
        mlp_expansion_factor: int = 4,
    ) -> None:
        super().__init__(
            dim, dim_inputs, mask_estimator_depth=mask_estimator_depth, mlp_expansion_factor=mlp_expansion_factor
        )
        layer = ParametersTransformer(attention, norm_output=False)
        time, freq = (RotaryEmbedding(attention.dim_head) for _ in range(2))
        self.layers = nn.ModuleList(
            nn.ModuleList(Transformer(dim, layer, depth=1, positions=positions) for positions in (time, freq))
            for _ in range(mask_transformer_depth)
        )
        self.norm = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, t, band, d)` to `(b, t, sum of widths)`."""
        batch, frames = x.shape[:2]
        for time, freq in nested(self.layers):
            x, _ = time(rearrange(x, "b t f d -> (b f) t d"))
            x, _ = freq(rearrange(x, "(b f) t d -> (b t) f d", b=batch))
            x = rearrange(x, "(b t) f d -> b t f d", t=frames)
        return super().forward(self.norm(x))


def build(dim: int, dim_inputs: Sequence[int], arguments: Mapping[str, Any]) -> AxialMaskEstimator:
    """Return the head that the model's arguments describe."""
    attention = ParametersAttention(
        arguments["mask_transformer_heads"],
        arguments["mask_transformer_dim_head"],
        flash_attn=arguments["flash_attn"],
        sage_attention=arguments["sage_attention"],
    )
    depth = arguments["mask_transformer_depth"]
    mlps = taken_by(OptionsMLP, arguments)
    return AxialMaskEstimator(dim, dim_inputs, mask_transformer_depth=depth, attention=attention, **mlps)


def check(arguments: Mapping[str, Any]) -> None:
    """Refuse attention heads that rotary embeddings cannot turn."""
    if arguments["mask_transformer_dim_head"] % 2:
        raise ValueError(
            f"mask_transformer_dim_head={arguments['mask_transformer_dim_head']} is odd, and rotary embeddings turn "
            "pairs of features: make it even."
        )


_ATTENTION: Final = rf"{HEAD}layers\.0\.0\.layers\.0\.0\."

AXIAL = HeadKind(
    "mask_transformer_depth",
    build,
    check,
    (
        Variant(
            name="BS-RoFormer Large-Inst v2",
            pattern=r"^mask_estimators\.\d+\.layers\.",
            example="mask_estimators.0.layers.0.0.layers.0.0.norm.gamma",
            options="mask_transformer_depth=4",
            switches=("mask_transformer_depth",),
            readings={
                "mask_transformer_depth": Count(rf"{HEAD}layers\.(\d+)\."),
                "mask_transformer_heads": Size(rf"{_ATTENTION}to_gates\.weight"),
                "mask_transformer_dim_head": Size(
                    rf"{_ATTENTION}to_qkv\.weight", per=rf"{_ATTENTION}to_gates\.weight", times=3
                ),
            },
            keys=rf"{HEADS}norm\.gamma"
            rf"|{HEADS}layers\.\d+\.[01]\.layers\.\d+\.(?:0\.(?:{ATTENTION_KEYS})|1\.(?:{FEED_FORWARD_KEYS}))",
            overlapping=False,
            defaults=NEVER_SILENT,
            published="unwa",
        ),
    ),
)
