"""Variants of the architecture: other heads and layers, and other architectures.

`VARIANTS` is the one table: how each is recognised from the keys of a state dict, which arguments of `BandSplitRotator`
make it, how to read these from the state dict, and how the upstream class differs from that of the plain model. A
variant without options is not supported, and refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hunterFormsBS.heads import HEADS
from hunterFormsBS.variantRow import ATTENTION_KEYS, FEED_FORWARD_KEYS, NEVER_SILENT, Present, Size, Variant

SHARED_BIASES: Final[Mapping[str, str]] = MappingProxyType(
    {"linear_62_bias_0": "shared_qkv_bias", "linear_64_bias_0": "shared_out_bias"}
)
"""Keys of the two shared biases in Logic's checkpoints, and this package's."""

LAYER_BIAS: Final = r"layers\.\d+\.\d+\.layers\.\d+\.(?:0|attn)\.(?:branch\.)?(to_qkv|to_out\.0)\.bias"
"""A shared bias in an attention layer."""

ROTARY_TABLE: Final = r"(?:cos|sin)_emb_(?:time|freq)|.*\.rotary_embed\.(?:cos|sin)_emb"
SINUSOIDS: Final = r".*\.positional_encoding\.pe"

_CONVOLUTION: Final = r"layers\.0\.\d+\.layers\.0\.conv\.net\."

VARIANTS: Final[tuple[Variant, ...]] = (
    Variant(
        name="LoRA adapter",
        pattern=r"\.lora_(?:[AB]|down|up)(?:\.|$)|^base_model\.model\.",
        example="layers.0.0.layers.0.0.to_qkv.lora_A",
        elsewhere="lora",
        advice="Load the checkpoint that it was trained on, and merge it (`--lora`).",
        published="MSST (loralib, peft)",
    ),
    *(variant for kind in HEADS for variant in kind.variants),
    Variant(
        name="RoFormer with a mixture of experts (MoE)",
        pattern=r"\.experts\.\d+\.|\.(?:router|gate)\.weight$",
        example="layers.0.0.layers.0.1.experts.3.net.1.weight",
        elsewhere="moe",
        advice="Its feedforward layers choose among experts, which this model does not support.",
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
        defaults=NEVER_SILENT,
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
        defaults=NEVER_SILENT,
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
        defaults=NEVER_SILENT,
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
        advice="It needs an input besides the mixture, which this model does not support.",
        published="mvsepless",
    ),
    Variant(
        name="BS Mamba2",
        pattern=r"mamba|\.A_log$|\.dt_bias$",
        example="separator_mask.0.seq_net.forward_mamba2.in_proj.weight",
        advice="It has state space layers instead of attention, and is not a RoFormer.",
        published="MSST ts_bs_mamba2",
    ),
    Variant(
        name="BS-RoFormer of HiDolen",
        pattern=r"\.band_transformer\.|\.q_norm\.|\.input_layernorm\.",
        example="layers.0.band_transformer.q_norm.weight",
        advice="Its layers are those of a language model, with other formulas.",
        published="HiDolen, Mini-BS-RoFormer",
    ),
    Variant(
        name="SCNet",
        pattern=r"\.SDlayer\.|^separation_net\.|^sd_blocks\.|^su_blocks\.",
        example="encoder.0.SDlayer.convs.0.weight",
        advice="It is not a RoFormer.",
        published="MSST scnet",
    ),
    Variant(
        name="Bandit",
        pattern=r"^bsrnn\.|^mask_estim\.|\.norm_fc_modules\.",
        example="bsrnn.mixture.band_split.norm_fc_modules.0.fc.weight",
        advice="It is not a RoFormer.",
        published="MSST bandit, bandit_v2",
    ),
    Variant(
        name="Demucs",
        pattern=r"^(?:t?encoder|t?decoder)\.\d+\.(?:conv|rewrite|dconv|conv_tr)\.|^crosstransformer\.",
        example="tencoder.0.conv.weight",
        advice="It is not a RoFormer.",
        published="htdemucs, hdemucs",
    ),
    Variant(
        name="MDX23C (TFC-TDF)",
        pattern=r"^first_conv\.|^(?:en|de)coder_blocks\.\d+\.tfc_tdf\.|^bottleneck_block\.",
        example="encoder_blocks.0.tfc_tdf.blocks.0.tfc1.0.weight",
        advice="It is not a RoFormer.",
        published="MDX23C, MDX-Net",
    ),
    Variant(
        name="Apollo",
        pattern=r"^BN\.\d+\.|^net\.\d+\.(?:band_net|seq_net)\.",
        example="net.0.band_net.blocks.0.weight",
        advice="It is not a RoFormer.",
        published="JusperLee/Apollo",
    ),
    Variant(
        name="VR network",
        pattern=r"^(?:stg\d_|base_net\.|aux\d?_out|low_band_net)",
        example="stg1_low_band_net.0.enc1.conv1.conv.0.weight",
        advice="It is not a RoFormer.",
        published="UVR",
    ),
)
"""All variants with their own keys. If keys fit several, messages name the first, and the first with `defaults`
determines the upstream class."""
