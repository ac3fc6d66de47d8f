"""Variants of the architecture: what the keys of a state dict call them, and what becomes of them here.

`VARIANTS` is the one table of names. A variant that is supported is options of `BandSplitRotator`, which
`infer_variants` finds; of another, a message says the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias, cast

import torch
from torch import Tensor

from hunterFormsBS.checkpoint.families import CheckpointError
from hunterFormsBS.variantChecks import OF_CONFORMERS, OF_FNO, OF_HYPERACE, OF_MASK_TRANSFORMERS, OF_MLPS

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_HALF_PRECISION: Final = 2e-3
"""How far tables of float16 may be from the formula."""


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
        The arguments of `BandSplitRotator` that make it. Empty: it is not supported.
    advice : str
        One sentence for the message that refuses it.
    published : str
        Where it comes from.
    """

    name: str
    pattern: str
    example: str
    options: str = ""
    advice: str = "Use the program that it was made for."
    published: str = ""


VARIANTS: Final[tuple[Variant, ...]] = (
    Variant(
        name="LoRA adapter",
        pattern=r"\.lora_(?:[AB]|down|up)(?:\.|$)|^base_model\.model\.",
        example="layers.0.0.layers.0.0.to_qkv.lora_A",
        advice="Load the checkpoint that it was trained on, and merge it (`--lora`).",
        published="MSST (loralib, peft)",
    ),
    Variant(
        name="BS-RoFormer Large-Inst v2",
        pattern=r"^mask_estimators\.\d+\.layers\.",
        example="mask_estimators.0.layers.0.0.layers.0.0.norm.gamma",
        options="mask_transformer_depth=4",
        published="unwa",
    ),
    Variant(
        name="HyperACE v2",
        pattern=r"^mask_estimators\.\d+\.segm\.upsample_head\.block1\.out_conv\.",
        example="mask_estimators.0.segm.upsample_head.block1.out_conv.blocks.0.tfc1.0.weight",
        options="use_hyperACE=True",
        published="unwa",
    ),
    Variant(
        name="HyperACE v1",
        pattern=r"^mask_estimators\.\d+\.segm\.",
        example="mask_estimators.0.segm.backbone.stem.dwconv.weight",
        options="use_hyperACE=True, segm_version=1",
        published="unwa",
    ),
    Variant(
        name="BS-RoFormer with FNO heads",
        pattern=r"\.fno_blocks\.|\.to_freqs\.\d+\.0\.(?:lifting|projection)\.",
        example="mask_estimators.0.to_freqs.0.0.fno_blocks.convs.0.weight.tensor",
        options="mask_fno_modes=33",
        published="unwa",
    ),
    Variant(
        name="RoFormer with a mixture of experts (MoE)",
        pattern=r"\.experts\.\d+\.|\.(?:router|gate)\.weight$",
        example="layers.0.0.layers.0.1.experts.3.net.1.weight",
        advice="Its feedforward layers choose among experts, which this model has not.",
        published="baicai-1145",
    ),
    Variant(
        name="BS-Roformer-SW with shared biases and tables of positions",
        pattern=r"^(?:cos|sin)_emb_(?:time|freq)$|\.rotary_embed\.(?:cos|sin)_emb$",
        example="cos_emb_time",
        options="use_shared_bias=True, unless the biases are 0",
        published="BS-Roformer-SW as first circulated",
    ),
    Variant(
        name="RoFormer with shared biases",
        pattern=r"^(?:linear_62_bias_0|linear_64_bias_0|shared_qkv_bias|shared_out_bias)$",
        example="linear_62_bias_0",
        options="use_shared_bias=True",
        published="Logic Pro's stem splitter",
    ),
    Variant(
        name="Conformer",
        pattern=r"^layers\.\d+\.\d+\.layers\.\d+\.conv\.net\.",
        example="layers.0.0.layers.0.conv.net.4.weight",
        options="time_conformer_depth, freq_conformer_depth",
        published="MSST bs_conformer, mel_band_conformer",
    ),
    Variant(
        name="BS-RoFormer Siamese",
        pattern=r"\.ln_y_attn\.",
        example="layers.0.0.ln_y_attn.0.gamma",
        options="siamese=True",
        published="unwa",
    ),
    Variant(
        name="RoFormer with windowed sink attention",
        pattern=r"^sink_tokens$",
        example="sink_tokens",
        options="n_wsa_sinks, wsa_window_len",
        published="Smule",
    ),
    Variant(
        name="Edge-BS-RoFormer with sinusoidal positions",
        pattern=r"\.positional_encoding\.pe$",
        example="layers.0.0.positional_encoding.pe",
        options="use_rotary_pos=False",
        published="Edge-BS-RoFormer",
    ),
    Variant(
        name="BS-RoFormer with conditions",
        pattern=r"^conditioner\.|\.conditioner\.",
        example="conditioner.net.0.weight",
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
"""All variants that have keys of their own. Those of a state dict that fits several are the first of them."""

SHARED_BIASES: Final[Mapping[str, str]] = MappingProxyType(
    {"linear_62_bias_0": "shared_qkv_bias", "linear_64_bias_0": "shared_out_bias"}
)
"""Names that Logic's checkpoints have for the two shared biases, and this package's."""

_LAYER_BIAS: Final = re.compile(r"layers\.\d+\.\d+\.layers\.\d+\.(?:0|attn)\.(?:branch\.)?(to_qkv|to_out\.0)\.bias")
_TABLE: Final = re.compile(r"(?:cos|sin)_emb_(?:time|freq)|.*\.rotary_embed\.(?:cos|sin)_emb")
_FOURIER_WEIGHT: Final = re.compile(r"(.*\.fno_blocks\.convs\.\d+\.weight)(?:\.tensor)?")
_SINUSOIDS: Final = re.compile(r".*\.positional_encoding\.pe")


SWITCHES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "conditional": "BS-RoFormer with conditions",
        "lora": "LoRA adapter",
        "moe": "RoFormer with a mixture of experts (MoE)",
    }
)
"""Arguments of other programs' models that switch on a variant which is not supported, and its name in `VARIANTS`."""

IDLE: Final[frozenset[str]] = frozenset({"conv_dropout", "max_seq_len"})
"""Arguments of other programs' models that change no audio: a dropout that MSST's Conformers do not have, and a longest
sequence, which positions do not have here."""


def states_nothing(name: str, value: object) -> bool:
    """Tell whether an argument of another program's model says only that something is not there.

    Raises
    ------
    CheckpointError
        If it switches on a variant that is not supported; the message names it.
    """
    if name in IDLE:
        return True
    if name not in SWITCHES:
        return False
    if _is_on(value):
        variant = next(variant for variant in VARIANTS if variant.name == SWITCHES[name])
        raise CheckpointError(
            f"the configuration is that of {variant.name}, which is not supported. {variant.advice} ({name} says so.)"
        )
    return True


def in_own_words(section: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments of a model with the switch of FNO heads, `fno` or `use_fno`, as the published heads."""
    own = {name: value for name, value in section.items() if name not in ("fno", "use_fno")}
    if any(_is_on(section[name]) for name in ("fno", "use_fno") if name in section):
        own.setdefault("mask_fno_modes", 33)
    return own


def _is_on(value: object) -> bool:
    return bool(cast("Mapping[str, object]", value).get("enabled", True) if isinstance(value, Mapping) else value)


def find_variant(keys: Iterable[str]) -> Variant | None:
    """Return the variant that the keys of a state dict are of, `None` for the plain model and for anything unknown."""
    lines = "\n".join(keys)
    return next((variant for variant in VARIANTS if re.search(variant.pattern, lines, re.MULTILINE)), None)


def refuse_unsupported(keys: Iterable[str]) -> None:
    """Raise a `CheckpointError` that names the variant, if it is one that is not supported."""
    variant = find_variant(keys)
    if variant is not None and not variant.options:
        raise CheckpointError(f"this is a checkpoint of {variant.name}, which is not supported. {variant.advice}")


def to_plain_keys(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Bring shared biases and tables of positions into the form that this package has for them.

    Parameters
    ----------
    state_dict : Mapping[str, Tensor]
        Of any variant.

    Returns
    -------
    state_dict : dict[str, Tensor]
        With `shared_qkv_bias`, `shared_out_bias` and the bias of every layer, or without all of these where they are 0;
        with frequencies instead of tables; with pairs of real numbers instead of complex ones.
    remarks : list[str]
        What was left out.

    Raises
    ------
    CheckpointError
        If one of the two biases is missing, or if tables are not those of rotary or sinusoidal positions.
    """
    remarks: list[str] = []
    renamed = {SHARED_BIASES.get(key, key): tensor for key, tensor in _real_pairs(state_dict).items()}
    return _tables_to_frequencies(_share_biases(renamed, remarks), remarks), remarks


def _real_pairs(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of Fourier neural operators, complex numbers upstream, the form that they have here."""
    pairs: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        match = _FOURIER_WEIGHT.fullmatch(key)
        name = match[1] if match else key
        pairs[name] = torch.view_as_real(tensor) if match and tensor.is_complex() else tensor
    return pairs


def _share_biases(state_dict: dict[str, Tensor], remarks: list[str]) -> dict[str, Tensor]:
    shared = {name: state_dict[name] for name in SHARED_BIASES.values() if name in state_dict}
    of_layers = {key: match[1] for key in state_dict if (match := _LAYER_BIAS.fullmatch(key))}
    if not shared and not of_layers:
        return state_dict
    names = {"to_qkv": "shared_qkv_bias", "to_out.0": "shared_out_bias"}
    differing = ""
    for key in sorted(of_layers, key=_numbers):
        name, bias = names[of_layers[key]], state_dict[key]
        if name in shared and not bias.is_meta and not torch.equal(shared[name], bias):
            differing = key
        # What upstream's module holds in the end, because every layer loads into the same parameter.
        shared[name] = bias
    if differing:
        remarks.append(
            f"the biases of attention differ among layers, {differing} for one. Upstream's program has one for all "
            "layers and keeps the last one, which is taken"
        )
    rest = {key: tensor for key, tensor in state_dict.items() if key not in of_layers and key not in shared}
    if not any(bias.is_meta or bool(bias.any()) for bias in shared.values()):
        remarks.append(f"{' and '.join(sorted(shared))} are 0 everywhere, and are left out")
        return rest
    lacking = sorted(set(names.values()) - shared.keys())
    if lacking:
        raise CheckpointError(f"the state dict has one of the two shared biases, and lacks {lacking[0]}")
    complete = {**shared, **rest}
    for key in rest:
        prefix, found, _ = key.rpartition(".to_qkv.weight")
        if found:
            complete[f"{prefix}.to_qkv.bias"] = shared["shared_qkv_bias"]
            complete[f"{prefix}.to_out.0.bias"] = shared["shared_out_bias"]
    return complete


def _numbers(key: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", key)]


def _tables_to_frequencies(state_dict: dict[str, Tensor], remarks: list[str]) -> dict[str, Tensor]:
    rotary = [key for key in state_dict if _TABLE.fullmatch(key)]
    sinusoidal = [key for key in state_dict if _SINUSOIDS.fullmatch(key)]
    rest = {key: tensor for key, tensor in state_dict.items() if key not in {*rotary, *sinusoidal}}
    for key in sinusoidal:
        angles = _angles(key, state_dict[key])
        _compare(key, state_dict[key], torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2), "sinusoidal")
    for key in rotary:
        angles = _angles(key, state_dict[key])
        wave = angles.cos() if "cos_emb" in key else angles.sin()
        _compare(key, state_dict[key], wave.repeat_interleave(2, dim=-1), "rotary")
    if rotary:
        frequencies = _frequencies(state_dict[rotary[0]].shape[1]).float()
        remarks.append(f"{len(rotary)} tables of positions, {rotary[0]} for one, are replaced by their frequencies")
        for key in list(rest):
            if key.startswith("layers.") and key.endswith(".to_qkv.weight"):
                rest.setdefault(f"{key.removesuffix('.to_qkv.weight')}.rotary_embed.freqs", frequencies)
    return rest


def _frequencies(features: int) -> Tensor:
    return 10000.0 ** -(torch.arange(0, features, 2, dtype=torch.float64) / features)


def _angles(key: str, table: Tensor) -> Tensor:
    if table.ndim != 2 or table.shape[1] % 2:
        raise CheckpointError(f"{key} has the shape {tuple(table.shape)}, which no table of positions has")
    return torch.arange(table.shape[0], dtype=torch.float64)[:, None] * _frequencies(table.shape[1])


def _compare(key: str, table: Tensor, expected: Tensor, kind: str) -> None:
    if not table.is_meta and (table.double() - expected).abs().amax() > _HALF_PRECISION:
        raise CheckpointError(
            f"{key} is not the table of {kind} positions with a base of 10000, and no other positions are supported"
        )


def infer_variants(shapes: Shapes) -> dict[str, object]:
    """Find the arguments that make the variant, from keys and shapes in this package's form."""
    return {
        **_infer_conformers(shapes),
        **_infer_fourier_operators(shapes),
        **_infer_mask_transformers(shapes),
        **_infer_hyper_ace(shapes),
        "n_wsa_sinks": _first(shapes, "sink_tokens") if "sink_tokens" in shapes else 0,
        "siamese": any(".ln_y_attn." in key for key in shapes),
        "use_shared_bias": "shared_qkv_bias" in shapes,
    }


def undetermined_of_variant(arguments: Mapping[str, object]) -> list[str]:
    """Return the arguments that change the audio, and that no shape tells, among those that these arguments need."""
    of_hyper_ace = ["segm_num_heads"] if arguments.get("use_hyperACE") else []
    return [*of_hyper_ace, *(["wsa_window_len"] if arguments.get("n_wsa_sinks") else [])]


def idle_arguments(arguments: Mapping[str, object]) -> set[str]:
    """Return the names of arguments that say how something is that these arguments do not have."""
    return {
        *(() if arguments.get("use_hyperACE") else OF_HYPERACE),
        *(OF_MLPS if arguments.get("mask_fno_modes") else OF_FNO),
        *(() if arguments.get("mask_transformer_depth") else OF_MASK_TRANSFORMERS),
        *(() if arguments.get("n_wsa_sinks") else ("wsa_window_len",)),
        *(() if has_conformers(arguments) else OF_CONFORMERS),
    }


def has_conformers(arguments: Mapping[str, object]) -> bool:
    """Tell whether a Conformer runs along any axis."""
    return bool(arguments.get("time_conformer_depth") or arguments.get("freq_conformer_depth"))


def _infer_conformers(shapes: Shapes) -> dict[str, object]:
    key = next((key for key in shapes if re.fullmatch(r"layers\.0\.\d+\.layers\.0\.conv\.net\.4\.weight", key)), None)
    if key is None:
        return {"time_conformer_depth": 0, "freq_conformer_depth": 0}
    channels, _, size = shapes[key]
    dim = shapes[key.replace(".net.4.weight", ".net.0.gamma")][0]
    return {"conv_expansion_factor": channels // dim, "conv_kernel_size": size}


def _infer_fourier_operators(shapes: Shapes) -> dict[str, object]:
    prefix = "mask_estimators.0.to_freqs.0.0.fno_blocks.convs."
    weights = [shape for key, shape in shapes.items() if key.startswith(prefix) and key.endswith(".weight")]
    if not weights:
        return {"mask_fno_modes": 0}
    return {"mask_fno_modes": weights[0][1], "mask_fno_depth": len(weights)}


def _infer_mask_transformers(shapes: Shapes) -> dict[str, object]:
    prefix = "mask_estimators.0.layers."
    depth = len({key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)})
    if not depth:
        return {"mask_transformer_depth": 0}
    attention = f"{prefix}0.0.layers.0.0"
    heads = _first(shapes, f"{attention}.to_gates.weight")
    return {
        "mask_transformer_depth": depth,
        "mask_transformer_heads": heads,
        "mask_transformer_dim_head": _first(shapes, f"{attention}.to_qkv.weight") // (3 * heads),
    }


def _infer_hyper_ace(shapes: Shapes) -> dict[str, object]:
    prefix = "mask_estimators.0.segm."
    keys = [key.removeprefix(prefix) for key in shapes if key.startswith(prefix)]
    if not keys:
        return {"use_hyperACE": False}

    def count(pattern: str) -> int:
        return len({match[1] for key in keys if (match := re.match(pattern, key))})

    stages = ("stem", "p2.0", "p3.0", "p4.0", "p5.0")
    generation = "hyperace.high_order_branch.0.ahc.adaptive_hyperedge_gen"
    return {
        "use_hyperACE": True,
        "segm_version": 2 if any(key.startswith("upsample_head.block1.out_conv.") for key in keys) else 1,
        "segm_backbone_channels": tuple(_first(shapes, f"{prefix}backbone.{stage}.pwconv.weight") for stage in stages),
        "segm_base_depth": count(r"backbone\.p2\.1\.m\.m\.(\d+)\."),
        "segm_hyperace_k": count(r"hyperace\.high_order_branch\.(\d+)\."),
        "segm_hyperace_l": count(r"hyperace\.low_order_branch\.(\d+)\."),
        "segm_num_hyperedges": _first(shapes, f"{prefix}{generation}.global_proto"),
    }


def _first(shapes: Shapes, key: str) -> int:
    if not shapes.get(key):
        raise CheckpointError(f"the state dict lacks {key}: is the file complete?")
    return shapes[key][0]
