"""Variants recognised by name: from keys, and from what configurations switch on."""

from __future__ import annotations

import re
import warnings
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import CheckpointError, from_checkpoint, from_configuration, translate_state_dict
from hunterFormsBS.checkpoint.arguments import DEFAULTS
from hunterFormsBS.checkpoint.families import UPSTREAM_NAMES
from hunterFormsBS.checkpoint.programs import SWITCHES
from hunterFormsBS.checkpoint.recognition import find_variants
from hunterFormsBS.checkpoint.variants import VARIANTS

SMALL: dict[str, Any] = {"dim": 8, "depth": 1, "dim_head": 8, "heads": 2, "num_stems": 1, "stereo": True}


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_variant_is_recognised_from_its_keys(variant: Any) -> None:
    assert find_variants(f"band_split.to_features.0.1.weight\n{variant.example}")[0] is variant


REFUSED = [variant for variant in VARIANTS if not variant.options]


@pytest.mark.parametrize("variant", REFUSED, ids=[variant.name for variant in REFUSED])
def test_first_line_of_a_refusal_is_the_name(variant: Any, tmp_path: Path) -> None:
    name, state_dict = variant.name, {variant.example: torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match=f"^this is a checkpoint of {re.escape(name)}, which is not supported"):
        translate_state_dict(state_dict)
    torch.save({"state_dict": state_dict}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=re.escape(name)):
        from_checkpoint(tmp_path / "model.ckpt")


def test_plain_model_is_no_variant() -> None:
    model = BandSplitRotator(**SMALL)
    assert not find_variants("\n".join(model.state_dict()))


def test_likeness_is_stated_only_where_keys_match() -> None:
    with pytest.raises(CheckpointError, match="unknown keys") as nothing:
        translate_state_dict({"a.b": torch.zeros(1)})
    assert "looks most like" not in str(nothing.value)
    with pytest.raises(CheckpointError, match="looks most like"):
        translate_state_dict({"a.b": torch.zeros(1), "final_norm.gamma": torch.zeros(1)})


@pytest.mark.parametrize(
    "off",
    [
        {"use_shared_bias": False},
        {"moe": {"enabled": False, "top_k": 2}},
        {"fno": False},
        {"max_seq_len": 1000, "use_rotary_pos": True},
        {"conv_dropout": 0.0},
    ],
)
def test_what_is_switched_off_is_accepted(off: dict[str, Any]) -> None:
    assert from_configuration({**SMALL, **off}).num_stems == 1


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [True, {"enabled": True, "num_experts": 4}])
def test_what_is_switched_on_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"^the configuration is that of {re.escape(SWITCHES[name].name)}"):
        from_configuration({**SMALL, name: value})


@pytest.mark.parametrize(
    "name", ["num_stem", "dims", "time_depth", "n_fft", "hop", "zzz", "learning_rate", "band", "x"]
)
def test_only_names_that_are_alike_are_suggested(name: str) -> None:
    known = [*DEFAULTS, *UPSTREAM_NAMES, "linear_flash_attn"]
    likeness = max(SequenceMatcher(None, one, name).ratio() for one in known)
    with pytest.raises(CheckpointError, match=f"'{name}' is not an argument") as refused:
        from_configuration({**SMALL, name: 1})
    assert ("nearest known name" in str(refused.value)) is (likeness >= 0.6)


# Shared biases and tables

BANDS = {"freqs_per_bands": (2, 3, 4), "stft_n_fft": 16, "stft_win_length": 16, "stft_hop_length": 4, "dim_freqs_in": 9}


def tables(model: BandSplitRotator, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Return the state dict with tables of cosines and sines, each number twice, instead of frequencies."""
    state_dict = {key: value for key, value in model.state_dict().items() if not key.endswith(".freqs")}
    angles = [[position * 10000 ** -(pair / 4) for pair in range(4) for _ in "qk"] for position in range(50)]
    cosines, sines = torch.tensor(angles).cos().to(dtype), torch.tensor(angles).sin().to(dtype)
    for axis in ("time", "freq"):
        state_dict |= {f"cos_emb_{axis}": cosines, f"sin_emb_{axis}": sines}
    state_dict["layers.0.0.layers.0.0.rotary_embed.cos_emb"] = cosines
    return state_dict


def test_tables_become_frequencies_and_biases_of_zero_are_left_out(tmp_path: Path) -> None:
    model = BandSplitRotator(**{**SMALL, **BANDS, "use_shared_bias": True}).eval()
    torch.save(tables(model), tmp_path / "sw.ckpt")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loaded = from_checkpoint(tmp_path / "sw.ckpt", {**BANDS, "zero_dc": True, "stereo": True})
    said = " ".join(str(warning.message) for warning in warned)
    assert "shared_out_bias and shared_qkv_bias are 0 everywhere, and are left out" in said
    assert "tables of positions" in said
    assert loaded.configuration["use_shared_bias"] is False
    audio = torch.randn(1, 2, 100)
    with torch.no_grad():
        torch.testing.assert_close(loaded(audio), model(audio))


def test_other_tables_are_refused(tmp_path: Path) -> None:
    state_dict = tables(BandSplitRotator(**{**SMALL, **BANDS}))
    state_dict["cos_emb_freq"] = state_dict["cos_emb_freq"] + 0.1
    with pytest.raises(CheckpointError, match="cos_emb_freq is not the table of rotary positions"):
        translate_state_dict(state_dict)


@pytest.mark.parametrize("names", [("linear_62_bias_0", "linear_64_bias_0"), ("shared_qkv_bias", "shared_out_bias")])
def test_shared_biases_reach_every_layer_from_either_name(names: tuple[str, str], tmp_path: Path) -> None:
    model = BandSplitRotator(**{**SMALL, **BANDS, "depth": 2, "use_shared_bias": True}).eval()
    with torch.no_grad():
        for bias in (model.shared_qkv_bias, model.shared_out_bias):
            assert bias is not None
            bias.normal_()
    ours = ("shared_qkv_bias", "shared_out_bias")
    state_dict = {key: value for key, value in model.state_dict().items() if not key.startswith("shared")}
    state_dict = {key: value for key, value in state_dict.items() if not key.endswith(("to_qkv.bias", "to_out.0.bias"))}
    state_dict |= {theirs: model.state_dict()[mine] for theirs, mine in zip(names, ours, strict=True)}
    torch.save(state_dict, tmp_path / "model.ckpt")
    loaded = from_checkpoint(tmp_path / "model.ckpt", {**BANDS, "stereo": True})
    audio = torch.randn(1, 2, 100)
    with torch.no_grad():
        loaded.zero_dc = model.zero_dc
        torch.testing.assert_close(loaded(audio), model(audio))
    del state_dict[names[0]]
    torch.save(state_dict, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="lacks shared_qkv_bias"):
        from_checkpoint(tmp_path / "model.ckpt", {**BANDS, "stereo": True})
