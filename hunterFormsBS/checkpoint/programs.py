"""Configurations of other programs, converted to the sections and names of Music-Source-Separation-Training.

The sections are `audio`, `model`, `training` and `inference`, also in UVR, audio-separator and pymss. splifft's JSON
has other sections and counts hidden layers differently; a fork of Music-Source-Separation-Training has `stereo` and the
transform in `audio`. docs/catalogue.md lists all programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.variants import VARIANTS
from hunterFormsBS.printable import printable, short_repr

OF_THE_MODEL: Final = (
    "stereo",
    "stft_n_fft",
    "stft_hop_length",
    "stft_win_length",
    "stft_normalized",
    "stft_window_fn",
)
"""Arguments of the model that a fork of Music-Source-Separation-Training has in the section `audio`."""

AUDIBLE: Final = ("fno", "hyperace", "lora")
"""Sections that mean another model, or only a part of one."""

ROFORMERS: Final = (
    *("bs_roformer", "mel_band_roformer", "mel_roformer", "bs_conformer", "mel_band_conformer"),
    *("bs_roformer_experimental", "mel_band_roformer_experimental", "bs_roformer_custom", "bs_roformer_hyperace"),
)
"""Values of `type` in a configuration for models that this package has."""

MASK_ESTIMATORS: Final[Mapping[str, Mapping[str, object]]] = {
    "baseline": {},
    "axial_refiner_large_v2": {"mask_transformer_depth": 4},
    "hyperace_residual_v1": {"use_hyperACE": True, "segm_version": 1},
    "hyperace_residual_v2": {"use_hyperACE": True, "segm_version": 2},
}
"""splifft's kinds of mask heads, as arguments of the model."""

_OPTIONS_OF_HEADS: Final = {
    "axial_refiner_depth": "mask_transformer_depth",
    "num_hyperedges": "segm_num_hyperedges",
    "num_heads": "segm_num_heads",
}
_HOW_SPLIFFT_COMPUTES: Final = ("debug", "rms_norm_eps", "rotary_embed_dtype", "transformer_residual_dtype")

SWITCHES: Final = MappingProxyType({variant.elsewhere: variant for variant in VARIANTS if variant.elsewhere})
"""Arguments of other programs that turn on an unsupported variant, and the variant."""

IDLE: Final[frozenset[str]] = frozenset({"conv_dropout", "max_seq_len"})
"""Arguments of other programs that change no audio: a dropout that MSST's Conformers lack, and a maximal sequence
length, which positions do not need here."""


def in_words_of_msst(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration of any program with the sections and names of Music-Source-Separation-Training.

    Raises
    ------
    CheckpointError
        If one of splifft's sections is not a mapping, or has an unknown kind.
    """
    model: object = configuration.get("model")
    if isinstance(model, Mapping) and ("band_config" in model or "output_stem_names" in model):
        return _from_splifft(configuration)
    audio: object = configuration.get("audio")
    if not isinstance(model, Mapping) or not isinstance(audio, Mapping):
        return configuration
    stated, beside = cast("Mapping[str, Any]", model), cast("Mapping[str, Any]", audio)
    moved = {name: beside[name] for name in OF_THE_MODEL if name in beside and name not in stated}
    return {**configuration, "model": {**stated, **moved}} if moved else configuration


def ignored_remarks(configuration: Mapping[str, Any]) -> list[str]:
    """Return remarks on audible parts of a configuration that are not read."""
    remarks = [
        f"the section {name} of the configuration is not read: the weights are taken to be those of the whole model"
        for name in AUDIBLE
        if configuration.get(name) and _is_on(configuration[name])
    ]
    kind: object = configuration.get("type", configuration.get("model_type"))
    if isinstance(kind, str) and kind not in ROFORMERS:
        remarks.append(f"the configuration is for a model of the type {short_repr(kind)}, which this package has not")
    return remarks


def states_nothing(name: str, value: object) -> bool:
    """Tell whether an argument of another program only turns a variant off.

    Raises
    ------
    CheckpointError
        If it turns on an unsupported variant; the message names it.
    """
    if name in IDLE:
        return True
    if name not in SWITCHES:
        return False
    if _is_on(value):
        variant = SWITCHES[name]
        raise CheckpointError(
            f"the configuration is that of {variant.name}, which is not supported. {variant.advice} ({name} says so.)"
        )
    return True


def in_own_words(section: Mapping[str, object]) -> dict[str, object]:
    """Return a model's arguments with `fno` or `use_fno` replaced by the sizes of the published FNO heads."""
    own = {name: value for name, value in section.items() if name not in ("fno", "use_fno")}
    if any(_is_on(section[name]) for name in ("fno", "use_fno") if name in section):
        own.setdefault("mask_fno_modes", 33)
    return own


def _is_on(value: object) -> bool:
    return bool(cast("Mapping[str, object]", value).get("enabled", True) if isinstance(value, Mapping) else value)


def _from_splifft(configuration: Mapping[str, Any]) -> dict[str, Any]:
    model, transform = section_of(configuration, "model"), section_of(configuration, "transform")
    bands, head = section_of(model, "band_config"), section_of(model, "mask_estimator")
    hop = transform.get("hop_length", model.get("stft_hop_length", 512))
    if model.get("stft_hop_length", hop) != hop:
        raise CheckpointError(
            f"the configuration states stft_hop_length={short_repr(model['stft_hop_length'])} in its model and "
            f"hop_length={short_repr(hop)} in its transform: keep one of them"
        )
    kind = bands.get("kind", "fixed")
    if kind not in ("fixed", "mel"):
        raise CheckpointError(f"band_config has the kind {short_repr(kind)}, which is neither 'fixed' nor 'mel'")
    n_fft = transform.get("n_fft", bands.get("stft_n_fft", 2048))
    stated: dict[str, Any] = {
        "num_stems": len(model.get("output_stem_names") or ()),
        "stereo": True,
        "time_transformer_depth": 1,
        "freq_transformer_depth": 1,
        "attn_dropout": 0.0,
        "ff_dropout": 0.0,
        "stft_n_fft": n_fft,
        "stft_hop_length": hop,
        "stft_win_length": transform.get("win_length", 2048),
        "stft_normalized": transform.get("normalized", False),
        "stft_window_fn": f"{printable(transform.get('window_shape', 'hann'), 40)}_window",
        # splifft and audio-separator never silence 0 Hz.
        "zero_dc": False,
    }
    apart = ("band_config", "chunk_size", "mask_estimator", "output_stem_names", "use_shared_bias")
    stated |= {
        key: value
        for key, value in model.items()
        if key not in apart and key not in _HOW_SPLIFFT_COMPUTES and not states_nothing(key, value)
    }
    # As upstream, the count excludes the output layer in a BS-RoFormer and includes it in a Mel-Band RoFormer.
    depth = stated.get("mask_estimator_depth", 2)
    stated["mask_estimator_depth"] = depth - (kind == "mel") if isinstance(depth, int) else depth
    if kind == "mel":
        stated["num_bands"] = bands.get("num_bands", 60)
        stated["sample_rate"] = bands.get("sample_rate", 44100)
    elif bands.get("freqs_per_bands") is not None:
        stated["freqs_per_bands"] = bands["freqs_per_bands"]
    if model.get("use_shared_bias"):
        stated["use_shared_bias"] = True
    stated |= _mask_estimator(head)

    inference, chunking = section_of(configuration, "inference"), section_of(configuration, "waveform_chunking")
    ratio = chunking.get("overlap_ratio", 0.5)
    separation: dict[str, Any] = {"batch_size": inference.get("batch_size", 1)}
    if isinstance(ratio, (int, float)) and 0 <= ratio < 1:
        separation["num_overlap"] = 1 / (1 - ratio)
    return {
        "audio": {
            "chunk_size": model.get("chunk_size"),
            "sample_rate": section_of(configuration, "audio_io").get("target_sample_rate", 44100),
        },
        "model": stated,
        "training": {"instruments": list(model.get("output_stem_names") or ())},
        "inference": separation,
    }


def _mask_estimator(head: Mapping[str, Any]) -> dict[str, Any]:
    kind = head.get("kind", "baseline")
    if kind not in MASK_ESTIMATORS:
        raise CheckpointError(
            f"mask_estimator has the kind {short_repr(kind)}, which is not supported; known are "
            f"{', '.join(MASK_ESTIMATORS)}"
        )
    options = {
        _OPTIONS_OF_HEADS[name]: value
        for name, value in head.items()
        if name in _OPTIONS_OF_HEADS and value is not None
    }
    return {**MASK_ESTIMATORS[kind], **options}


def section_of(configuration: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a configuration; empty if there is none."""
    section: object = configuration.get(name) or {}
    if not isinstance(section, Mapping):
        raise CheckpointError(
            f"the section {name} of the configuration must be a mapping, but is {short_repr(section)}"
        )
    return cast("Mapping[str, Any]", section)
