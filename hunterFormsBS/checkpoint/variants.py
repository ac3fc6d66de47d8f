"""Variants of the architecture: heads and layers of their own, and models of other kinds.

`VARIANTS` is the one table: how each is recognised in the keys of a state dict, which arguments of `BandSplitRotator`
make it and where the state dict says them, and how the upstream class differs from that of the plain model. A variant
without options is not supported, and refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias


class Count(NamedTuple):
    """How many numbers the group of a regular expression takes, among the keys that begin with what it matches."""

    pattern: str


class Present(NamedTuple):
    """Whether there is a key that a regular expression matches as a whole."""

    pattern: str


class Size(NamedTuple):
    """One size of the first tensor whose key `pattern` matches as a whole; over the first size of `per`, `times`."""

    pattern: str
    axis: int = 0
    per: str = ""
    times: int = 1


class Sizes(NamedTuple):
    """The first size of each of several tensors, found as in `Size`."""

    patterns: tuple[str, ...]


Reading: TypeAlias = Count | Present | Size | Sizes | int
"""Where keys and shapes say what an argument is, or its value, where the variant alone says it."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Parameters
    ----------
    name : str
        What messages call it.
    pattern : str
        A regular expression that matches a key of its state dicts, and none of other variants'.
    example : str
        Such a key.
    options : str
        The arguments of `BandSplitRotator` that make it, for readers. Empty: it is not supported.
    switches : tuple[str, ...]
        Those that have their defaults in every other model.
    readings : Mapping[str, Reading]
        Where keys and shapes say its arguments.
    keys : str
        A regular expression for the keys that it has besides those of the plain model, in this package's form.
    layer : str
        What its layers are called in the arguments that count those of an axis, where they replace transformers.
    overlapping : bool, optional
        The upstream class that the next two describe is for bands that overlap, or for those that do not; None: both.
    defaults : Mapping[str, object]
        Defaults of that class where they differ from those of the plain model.
    mask_estimator_depth_excess : int, optional
        What its `mask_estimator_depth` counts beyond the hidden layers; None: as the plain model.
    elsewhere : str
        The argument that switches it on in configurations of other programs.
    advice : str
        One sentence for the message that refuses it.
    published : str
        Where it comes from.
    """

    name: str
    pattern: str
    example: str
    options: str = ""
    switches: tuple[str, ...] = ()
    readings: Mapping[str, Reading] = field(default_factory=dict[str, Reading])
    keys: str = ""
    layer: str = ""
    overlapping: bool | None = None
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    mask_estimator_depth_excess: int | None = None
    elsewhere: str = ""
    advice: str = "Use the program that it was made for."
    published: str = ""


SHARED_BIASES: Final[Mapping[str, str]] = MappingProxyType(
    {"linear_62_bias_0": "shared_qkv_bias", "linear_64_bias_0": "shared_out_bias"}
)
"""Names that Logic's checkpoints have for the two shared biases, and this package's."""

LAYER_BIAS: Final = r"layers\.\d+\.\d+\.layers\.\d+\.(?:0|attn)\.(?:branch\.)?(to_qkv|to_out\.0)\.bias"
"""A shared bias, as an attention layer has it."""

ATTENTION_KEYS: Final = (
    r"norm\.gamma|to_qkv\.(?:(?:0\.)?weight|bias)|to_gates\.(?:weight|bias)|to_out\.(?:[01]\.weight|0\.bias)"
    r"|temperature|rotary_embed\.freqs|pope_embed\.(?:bias|inv_freqs)|to_value_residual_mix\.(?:weight|bias)"
)
FEED_FORWARD_KEYS: Final = r"net\.0\.gamma|net\.[14]\.(?:weight|bias)"
"""Keys within an attention layer and within a feedforward layer."""

ROTARY_TABLE: Final = r"(?:cos|sin)_emb_(?:time|freq)|.*\.rotary_embed\.(?:cos|sin)_emb"
SINUSOIDS: Final = r".*\.positional_encoding\.pe"

_HEADS: Final = r"mask_estimators\.\d+\."
_HEAD: Final = r"mask_estimators\.0\."
_ATTENTION: Final = rf"{_HEAD}layers\.0\.0\.layers\.0\.0\."
_OPERATOR: Final = rf"{_HEAD}to_freqs\.0\.0\.fno_blocks\.convs\."
_CONVOLUTION: Final = r"layers\.0\.\d+\.layers\.0\.conv\.net\."
_HYPEREDGES: Final = rf"{_HEAD}segm\.hyperace\."
_STAGES: Final = ("stem", r"p2\.0", r"p3\.0", r"p4\.0", r"p5\.0")
_HYPERACE: Final[Mapping[str, Reading]] = MappingProxyType(
    {
        "use_hyperACE": True,
        "segm_backbone_channels": Sizes(tuple(rf"{_HEAD}segm\.backbone\.{stage}\.pwconv\.weight" for stage in _STAGES)),
        "segm_base_depth": Count(rf"{_HEAD}segm\.backbone\.p2\.1\.m\.m\.(\d+)\."),
        "segm_hyperace_k": Count(rf"{_HYPEREDGES}high_order_branch\.(\d+)\."),
        "segm_hyperace_l": Count(rf"{_HYPEREDGES}low_order_branch\.(\d+)\."),
        "segm_num_hyperedges": Size(rf"{_HYPEREDGES}high_order_branch\.0\.ahc\.adaptive_hyperedge_gen\.global_proto"),
    }
)
_SEGMENTATION_KEYS: Final = rf"{_HEADS}segm\.(?:backbone|hyperace|decoder|upsample_head)\.\S+"

# None of the classes for these variants silences 0 Hz.
_NEVER_SILENT: Final[Mapping[str, object]] = MappingProxyType({"zero_dc": False})

VARIANTS: Final[tuple[Variant, ...]] = (
    Variant(
        name="LoRA adapter",
        pattern=r"\.lora_(?:[AB]|down|up)(?:\.|$)|^base_model\.model\.",
        example="layers.0.0.layers.0.0.to_qkv.lora_A",
        elsewhere="lora",
        advice="Merge it into the checkpoint that it was trained on, and load the result.",
        published="MSST (loralib, peft)",
    ),
    Variant(
        name="BS-RoFormer Large-Inst v2",
        pattern=r"^mask_estimators\.\d+\.layers\.",
        example="mask_estimators.0.layers.0.0.layers.0.0.norm.gamma",
        options="mask_transformer_depth=4",
        switches=("mask_transformer_depth",),
        readings={
            "mask_transformer_depth": Count(rf"{_HEAD}layers\.(\d+)\."),
            "mask_transformer_heads": Size(rf"{_ATTENTION}to_gates\.weight"),
            "mask_transformer_dim_head": Size(
                rf"{_ATTENTION}to_qkv\.weight", per=rf"{_ATTENTION}to_gates\.weight", times=3
            ),
        },
        keys=rf"{_HEADS}norm\.gamma"
        rf"|{_HEADS}layers\.\d+\.[01]\.layers\.\d+\.(?:0\.(?:{ATTENTION_KEYS})|1\.(?:{FEED_FORWARD_KEYS}))",
        overlapping=False,
        defaults=_NEVER_SILENT,
        published="unwa",
    ),
    Variant(
        name="HyperACE v2",
        pattern=r"^mask_estimators\.\d+\.segm\.upsample_head\.block1\.out_conv\.",
        example="mask_estimators.0.segm.upsample_head.block1.out_conv.blocks.0.tfc1.0.weight",
        options="use_hyperACE=True",
        switches=("use_hyperACE",),
        readings={**_HYPERACE, "segm_version": 2},
        keys=_SEGMENTATION_KEYS,
        overlapping=False,
        defaults=_NEVER_SILENT,
        published="unwa",
    ),
    Variant(
        name="HyperACE v1",
        pattern=r"^mask_estimators\.\d+\.segm\.",
        example="mask_estimators.0.segm.backbone.stem.dwconv.weight",
        options="use_hyperACE=True, segm_version=1",
        switches=("use_hyperACE",),
        readings={**_HYPERACE, "segm_version": 1},
        keys=_SEGMENTATION_KEYS,
        overlapping=False,
        defaults=_NEVER_SILENT,
        published="unwa",
    ),
    Variant(
        name="BS-RoFormer with FNO heads",
        pattern=r"\.fno_blocks\.|\.to_freqs\.\d+\.0\.(?:lifting|projection)\.",
        example="mask_estimators.0.to_freqs.0.0.fno_blocks.convs.0.weight.tensor",
        options="mask_fno_modes=33",
        switches=("mask_fno_modes",),
        readings={
            "mask_fno_modes": Size(rf"{_OPERATOR}\d+\.weight", axis=1),
            "mask_fno_depth": Count(rf"{_OPERATOR}(\d+)\.weight"),
        },
        keys=rf"{_HEADS}to_freqs\.\d+\.0\.(?:fno_blocks|lifting|projection)\.\S+",
        published="unwa",
    ),
    Variant(
        name="RoFormer with a mixture of experts (MoE)",
        pattern=r"\.experts\.\d+\.|\.(?:router|gate)\.weight$",
        example="layers.0.0.layers.0.1.experts.3.net.1.weight",
        elsewhere="moe",
        advice="Its feedforward layers choose among experts, which this model has not.",
        published="baicai-1145",
    ),
    Variant(
        name="BS-Roformer-SW with shared biases and tables of positions",
        pattern=rf"^(?:{ROTARY_TABLE})$",
        example="cos_emb_time",
        options="use_shared_bias=True, unless the biases are 0",
        published="BS-Roformer-SW as first circulated",
    ),
    Variant(
        name="RoFormer with shared biases",
        pattern=rf"^(?:{'|'.join((*SHARED_BIASES, *SHARED_BIASES.values(), LAYER_BIAS))})$",
        example="linear_62_bias_0",
        options="use_shared_bias=True",
        switches=("use_shared_bias",),
        readings={"use_shared_bias": Present("shared_qkv_bias")},  # biases of 0 are left out
        keys=r"shared_(?:qkv|out)_bias",
        overlapping=False,
        defaults=_NEVER_SILENT,
        published="Logic Pro's stem splitter",
    ),
    Variant(
        name="BS-RoFormer Siamese",
        pattern=r"\.ln_y_attn\.",
        example="layers.0.0.ln_y_attn.0.gamma",
        options="siamese=True",
        switches=("siamese",),
        readings={"siamese": True},
        keys=r"layers\.\d+\.\d+\.(?:ln_[xy]_(?:attn|mlp)\.\d+\.gamma|y_attn\.\d+)",
        overlapping=False,
        defaults=_NEVER_SILENT,
        published="unwa",
    ),
    Variant(
        name="RoFormer with windowed sink attention",
        pattern=r"^sink_tokens$",
        example="sink_tokens",
        options="n_wsa_sinks, wsa_window_len",
        switches=("n_wsa_sinks",),
        readings={"n_wsa_sinks": Size("sink_tokens")},
        keys="sink_tokens",
        overlapping=True,
        defaults={"attn_dropout": 0.0, "ff_dropout": 0.0, "wsa_window_len": 10},
        published="Smule",
    ),
    Variant(
        name="Edge-BS-RoFormer with sinusoidal positions",
        pattern=rf"^{SINUSOIDS}$",
        example="layers.0.0.positional_encoding.pe",
        options="use_rotary_pos=False",
        readings={"use_rotary_pos": False},
        overlapping=False,
        defaults=_NEVER_SILENT,
        published="Edge-BS-RoFormer",
    ),
    Variant(
        name="Conformer",
        pattern=r"^layers\.\d+\.\d+\.layers\.\d+\.conv\.net\.",
        example="layers.0.0.layers.0.conv.net.4.weight",
        options="time_conformer_depth, freq_conformer_depth",
        switches=("time_conformer_depth", "freq_conformer_depth"),
        readings={
            "conv_expansion_factor": Size(rf"{_CONVOLUTION}4\.weight", per=rf"{_CONVOLUTION}0\.gamma"),
            "conv_kernel_size": Size(rf"{_CONVOLUTION}4\.weight", axis=2),
        },
        keys=rf"layers\.\d+\.\d+\.layers\.\d+\.(?:attn\.(?:{ATTENTION_KEYS})|ff[12]\.ff\.(?:{FEED_FORWARD_KEYS})"
        r"|conv\.net\.(?:0\.gamma|[2457]\.(?:weight|bias)|5\.(?:running_mean|running_var|num_batches_tracked))"
        r"|out_norm\.gamma)",
        layer="conformer",
        defaults={
            "freq_conformer_depth": 2,
            "freq_transformer_depth": 0,
            "norm_output": False,
            "time_conformer_depth": 2,
            "time_transformer_depth": 0,
        },
        mask_estimator_depth_excess=1,
        published="MSST bs_conformer, mel_band_conformer",
    ),
    Variant(
        name="BS-RoFormer with conditions",
        pattern=r"^conditioner\.|\.conditioner\.",
        example="conditioner.net.0.weight",
        elsewhere="conditional",
        advice="It takes an input besides the mixture, which this model has not.",
        published="mvsepless",
    ),
    Variant(
        name="BS Mamba2",
        pattern=r"mamba|\.A_log$|\.dt_bias$",
        example="separator_mask.0.seq_net.forward_mamba2.in_proj.weight",
        advice="It has state space layers instead of attention, and is no RoFormer.",
        published="MSST ts_bs_mamba2",
    ),
    Variant(
        name="BS-RoFormer of HiDolen",
        pattern=r"\.band_transformer\.|\.q_norm\.|\.input_layernorm\.",
        example="layers.0.band_transformer.q_norm.weight",
        advice="Its layers are those of a language model, with other names and other formulas.",
        published="HiDolen, Mini-BS-RoFormer",
    ),
    Variant(
        name="SCNet",
        pattern=r"\.SDlayer\.|^separation_net\.|^sd_blocks\.|^su_blocks\.",
        example="encoder.0.SDlayer.convs.0.weight",
        advice="It is no RoFormer.",
        published="MSST scnet",
    ),
    Variant(
        name="Bandit",
        pattern=r"^bsrnn\.|^mask_estim\.|\.norm_fc_modules\.",
        example="bsrnn.mixture.band_split.norm_fc_modules.0.fc.weight",
        advice="It is no RoFormer.",
        published="MSST bandit, bandit_v2",
    ),
    Variant(
        name="Demucs",
        pattern=r"^(?:t?encoder|t?decoder)\.\d+\.(?:conv|rewrite|dconv|conv_tr)\.|^crosstransformer\.",
        example="tencoder.0.conv.weight",
        advice="It is no RoFormer.",
        published="htdemucs, hdemucs",
    ),
    Variant(
        name="MDX23C (TFC-TDF)",
        pattern=r"^first_conv\.|^(?:en|de)coder_blocks\.\d+\.tfc_tdf\.|^bottleneck_block\.",
        example="encoder_blocks.0.tfc_tdf.blocks.0.tfc1.0.weight",
        advice="It is no RoFormer.",
        published="MDX23C, MDX-Net",
    ),
    Variant(
        name="Apollo",
        pattern=r"^BN\.\d+\.|^net\.\d+\.(?:band_net|seq_net)\.",
        example="net.0.band_net.blocks.0.weight",
        advice="It is no RoFormer.",
        published="JusperLee/Apollo",
    ),
    Variant(
        name="VR network",
        pattern=r"^(?:stg\d_|base_net\.|aux\d?_out|low_band_net)",
        example="stg1_low_band_net.0.enc1.conv1.conv.0.weight",
        advice="It is no RoFormer.",
        published="UVR",
    ),
)
"""All variants that have keys of their own. Where keys fit several, messages name the first, and the first that has
`defaults` says what the upstream class was."""
