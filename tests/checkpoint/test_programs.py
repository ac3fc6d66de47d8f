"""Configurations of other programs: what they say, in the words of Music-Source-Separation-Training."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from hunterFormsBS.catalogue import entries
from hunterFormsBS.checkpoint import CheckpointError, from_configuration
from hunterFormsBS.checkpoint.configuration import load_configuration

SHARED = Path(__file__).resolve().parents[3] / "shared"
REFUSED_BY_NAME = {"config_musdb18_mel_band_roformer_moe": "mixture of experts"}

SPLIFFT: dict[str, Any] = {
    "identifier": "bs_roformer-somebody-something",
    "model_type": "bs_roformer",
    "model": {
        "chunk_size": 131072,
        "output_stem_names": ["vocals", "drums"],
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "dim_head": 4,
        "band_config": {"kind": "fixed", "freqs_per_bands": [3, 6, 24]},
        "stft_hop_length": 16,
        "rms_norm_eps": 1e-8,
    },
    "transform": {"kind": "stft", "n_fft": 64, "hop_length": 16, "win_length": 64, "conv_dtype": "float16"},
    "inference": {"batch_size": 3},
    "waveform_chunking": {"overlap_ratio": 0.75},
}


def changed(**model: Any) -> dict[str, Any]:
    return {**SPLIFFT, "model": {**SPLIFFT["model"], **model}}


def built(configuration: Any, **overrides: Any) -> dict[str, Any]:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_configuration(configuration, **overrides).configuration


def test_splifft_s_fixed_bands_are_a_bs_roformer() -> None:
    expected = {
        "dim": 16,
        "num_stems": 2,
        "stereo": True,
        "freqs_per_bands": (3, 6, 24),
        "time_transformer_depth": 1,
        "mask_estimator_depth": 1,
        "stft_n_fft": 64,
        "stft_hop_length": 16,
        "stft_win_length": 64,
        "zero_dc": False,
    }
    assert built(SPLIFFT).items() >= expected.items()


def test_splifft_s_mel_bands_are_a_mel_band_roformer_counted_as_there() -> None:
    transform = {**SPLIFFT["transform"], "n_fft": 2048, "win_length": 2048}
    mel = {**changed(band_config={"kind": "mel"}, norm_output=True, mask_estimator_depth=3), "transform": transform}
    expected = {"num_bands": 60, "sample_rate": 44100, "mask_estimator_depth": 2, "norm_output": True}
    assert built(mel).items() >= {**expected, "zero_dc": False, "attn_dropout": 0.0}.items()


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({"kind": "axial_refiner_large_v2"}, {"mask_transformer_depth": 4}),
        ({"kind": "axial_refiner_large_v2", "axial_refiner_depth": 2}, {"mask_transformer_depth": 2}),
        ({"kind": "hyperace_residual_v1", "num_hyperedges": 5}, {"segm_version": 1, "segm_num_hyperedges": 5}),
        ({"kind": "hyperace_residual_v2"}, {"use_hyperACE": True, "segm_version": 2}),
        ({"kind": "baseline"}, {"use_hyperACE": False, "mask_transformer_depth": 0}),
    ],
)
def test_splifft_s_mask_heads_are_options(head: dict[str, Any], expected: dict[str, Any]) -> None:
    assert built(changed(mask_estimator=head)).items() >= expected.items()


def test_the_other_sections_of_splifft_are_there_for_who_separates() -> None:
    sections = load_configuration(SPLIFFT)
    assert sections["audio"] == {"chunk_size": 131072, "sample_rate": 44100}
    assert sections["training"] == {"instruments": ["vocals", "drums"]}
    assert sections["inference"] == {"batch_size": 3, "num_overlap": 4.0}


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (changed(band_config={"kind": "bark"}), "kind 'bark', which is neither"),
        (changed(mask_estimator={"kind": "fno"}), "kind 'fno', which is not supported"),
        (changed(stft_hop_length=17), "stft_hop_length=17 in its model and hop_length=16"),
        (changed(band_config="mel"), "the section band_config of the configuration must be a mapping, but is 'mel'"),
        (changed(dims=3), "'dims' is not an argument"),
        ({**SPLIFFT, "transform": {**SPLIFFT["transform"], "window_shape": "\x1b[2J"}}, "names no window function"),
    ],
)
def test_what_is_wrong_in_splifft_s_is_named(configuration: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        from_configuration(configuration)
    assert "\x1b" not in str(caught.value)


def test_what_a_fork_has_under_audio_belongs_to_the_model() -> None:
    model = {"dim": 16, "depth": 2, "freqs_per_bands": [3, 6, 24], "heads": 1, "dim_head": 4}
    audio = {"stft_n_fft": 64, "stft_hop_length": 8, "stft_win_length": 64, "stereo": False, "hop_length": 99}
    configuration = built({"type": "bs_roformer", "audio": audio, "model": model})
    assert configuration.items() >= {"stft_hop_length": 8, "stft_n_fft": 64, "stereo": False}.items()
    stated = built({"audio": audio, "model": {**model, "stft_hop_length": 32}})
    assert stated["stft_hop_length"] == 32


@pytest.mark.parametrize(
    ("section", "remark"),
    [
        ({"lora": {"r": 8}}, "the section lora of the configuration is not read"),
        ({"hyperace": {"enabled": True}}, "the section hyperace"),
        ({"fno": {"modes": 8}}, "the section fno"),
        ({"type": "scnet"}, "a model of the type 'scnet', which this package has not"),
    ],
)
def test_what_is_not_read_and_could_be_heard_is_named(section: dict[str, Any], remark: str) -> None:
    model = {"dim": 16, "depth": 1, "freqs_per_bands": [3, 6, 24], "stft_n_fft": 64, "stft_win_length": 64}
    with torch.device("meta"), pytest.warns(UserWarning, match=remark):
        from_configuration({**section, "model": {**model, "stft_hop_length": 16}})


@pytest.mark.parametrize("section", [{"lora": {"enabled": False}}, {"lora": None}, {"type": "mel_band_roformer"}])
def test_what_is_off_is_not_worth_a_remark(section: dict[str, Any]) -> None:
    model = {"dim": 16, "depth": 1, "freqs_per_bands": [3, 6, 24], "stft_n_fft": 64, "stft_win_length": 64}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("error")
        from_configuration({**section, "model": {**model, "stft_hop_length": 16}})


def public_configurations() -> list[Path]:
    return sorted((SHARED / "configs_public").glob("*"))


@pytest.mark.parametrize("path", public_configurations(), ids=lambda path: path.stem[-60:])
def test_public_configurations_build_or_are_refused_by_the_name_of_their_variant(path: Path) -> None:
    name = REFUSED_BY_NAME.get(path.stem.partition("__")[2])
    if name is None:
        assert built(path)["dim"]
    else:
        with pytest.raises(CheckpointError, match=name):
            from_configuration(path)


def catalogued() -> dict[str, Any]:
    path = SHARED / "catalogue" / "roformer_checkpoints.json"
    return json.loads(path.read_text()) if path.exists() else {}


OF_ANOTHER_SIZE = {
    "bs_roformer-unwa-inst_fno": "this configuration does not say that its heads are Fourier neural operators",
    "mel_roformer-amane-small": "the file has fewer layers than its configuration, and is loaded by its shapes",
}
"""Checkpoints whose file has not the size of the model of its configuration, and why."""

LEFT_OUT = {
    "mel_roformer-amane-small": "its configuration is not that of the file",
    **dict.fromkeys(
        (
            *("bs_roformer-amane-4_stems", "mel_roformer-aufr33-denoise_average"),
            *("mel_roformer-jasper-vocalsandeffects", "mel_roformer-yolkis-drums", "bs_roformer-xlance-msr"),
        ),
        "neither its digest nor its size is known",
    ),
}
"""Checkpoints of the catalogue without a configuration, and why."""


def test_every_public_checkpoint_is_in_the_catalogue_with_its_configuration_or_a_reason() -> None:
    facts = catalogued()
    if facts:
        assert sorted(facts) == sorted(entries())
    assert {name for name, entry in entries().items() if not entry.configuration} == set(LEFT_OUT)


@pytest.mark.parametrize("name", [name for name, facts in catalogued().items() if "splifft_configuration" in facts])
def test_catalogued_configurations_build_with_as_many_parameters_as_the_file_has_room_for(name: str) -> None:
    facts = catalogued()[name]
    with torch.device("meta"):
        model = from_configuration(facts["splifft_configuration"])
    if facts["size_bytes"]:
        bytes_each = facts["size_bytes"] / sum(parameter.numel() for parameter in model.parameters())
        fits = 1.98 < bytes_each < 2.1 or 3.97 < bytes_each < 4.2
        assert fits is (name not in OF_ANOTHER_SIZE)
