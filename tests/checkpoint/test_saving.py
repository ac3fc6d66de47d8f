"""Checkpoints that are written: what comes back, from every layout and format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import CheckpointError, from_checkpoint, read_configuration, save_checkpoint
from tests.models import TINY

MEL: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name not in ("freqs_per_bands", "dim_freqs_in")},
    "num_bands": 60,
    "sample_rate": 44100,
    "stft_n_fft": 2048,
    "stft_win_length": 2048,
    "stft_hop_length": 441,
}
TWO = {"training": {"instruments": ["vocals", "drums"]}}
WITHOUT_BANDS = {name: value for name, value in TINY.items() if name != "freqs_per_bands"}
BANK = torch.ones(2, 33, dtype=torch.bool)
ONE = {"training": {"instruments": ["a"]}}
CASES = {
    "bs": (TINY | {"stereo": True, "num_stems": 2}, TWO),
    "mel": (MEL | {"num_stems": 2, "zero_dc": True}, TWO),
    "skip, deep heads": (
        TINY | {"skip_connection": True, "mask_estimator_depth": 3},
        {"training": {"instruments": ["a"]}},
    ),
    "pope": (TINY | {"use_pope": True, "num_stems": 2}, TWO),
    "one of two stems": (TINY, {"training": {"instruments": ["vocals", "other"], "target_instrument": "vocals"}}),
}


def made(**arguments: Any) -> BandSplitRotator:
    torch.manual_seed(0)
    model = BandSplitRotator(**arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def estimate(model: BandSplitRotator) -> torch.Tensor:
    torch.manual_seed(1)
    channels = 2 if model.configuration["stereo"] else 1
    with torch.no_grad():
        return model(torch.randn(1, channels, 4410))


@pytest.mark.parametrize(("arguments", "sections"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_the_pair_for_other_programs_gives_the_same_audio_as_they_read_it(
    arguments: dict[str, Any], sections: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    model = made(**arguments)
    path = tmp_path / f"model{suffix}"
    save_checkpoint(path, model, configuration=sections, layout="msst")
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, "model.yaml"]
    again = from_checkpoint(path, tmp_path / "model.yaml", upstream="msst")
    torch.testing.assert_close(estimate(again), estimate(model), rtol=0, atol=0)
    # What was loaded states all that shapes tell.
    save_checkpoint(tmp_path / f"again{suffix}", again, configuration=sections, layout="msst")
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "model.yaml").read_text()


def test_the_pair_holds_weights_alone_and_every_argument_in_msst_s_counting(tmp_path: Path) -> None:
    model = made(**CASES["bs"][0])
    save_checkpoint(tmp_path / "model.ckpt", model, configuration={**TWO, "audio": {"chunk_size": 999}}, layout="msst")
    weights = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert weights.keys() == model.state_dict().keys()
    text = (tmp_path / "model.yaml").read_text()
    assert "freqs_per_bands: !!python/tuple [2, 3, 4, 5, 7, 12]" in text
    configuration = yaml.load(text, yaml.FullLoader)
    assert configuration["model"] == {
        **{name: TINY[name] for name in TINY},
        "stereo": True,
        "num_stems": 2,
        "attn_dropout": 0.0,
        "ff_dropout": 0.0,
        "flash_attn": True,
        "stft_normalized": False,
        "mask_estimator_depth": 2,
        "multi_stft_resolution_loss_weight": 1.0,
        "multi_stft_normalized": False,
        "freqs_per_bands": TINY["freqs_per_bands"],
    }
    assert configuration["audio"].items() >= {"chunk_size": 999, "sample_rate": 44100, "num_channels": 2}.items()
    assert configuration["training"]["instruments"] == ["vocals", "drums"]
    assert configuration["inference"]["dim_t"] == 999 // 16 + 1


# The names that the constructors of UVR (branch v5.6.0_roformer_add+directml) and audio-separator both take: another is
# a TypeError there.
OF_OTHER_PROGRAMS = {
    *("dim", "depth", "stereo", "num_stems", "time_transformer_depth", "freq_transformer_depth", "dim_head", "heads"),
    *("attn_dropout", "ff_dropout", "flash_attn", "dim_freqs_in", "stft_n_fft", "stft_hop_length", "stft_win_length"),
    *("stft_normalized", "stft_window_fn", "mask_estimator_depth", "multi_stft_resolution_loss_weight"),
    *("multi_stft_resolutions_window_sizes", "multi_stft_hop_size", "multi_stft_normalized", "multi_stft_window_fn"),
}
OF_ONE_LAYOUT = {
    "bs": {"freqs_per_bands", "linear_transformer_depth"},
    "mel": {"num_bands", "sample_rate", "match_input_audio_length"},
}


@pytest.mark.parametrize("layout", OF_ONE_LAYOUT)
def test_nothing_is_stated_that_uvr_or_audio_separator_refuse(layout: str, tmp_path: Path) -> None:
    arguments = {**CASES[layout][0], "mlp_expansion_factor": 4, "zero_dc": True}
    save_checkpoint(tmp_path / "a.ckpt", made(**arguments), configuration=TWO, layout="msst")
    sections = yaml.load((tmp_path / "a.yaml").read_text(), yaml.FullLoader)
    assert not sections["model"].keys() - OF_OTHER_PROGRAMS - OF_ONE_LAYOUT[layout]
    # What those programs read beside the model.
    assert sections["audio"]["hop_length"] == arguments["stft_hop_length"]
    assert sections["inference"].keys() >= {"dim_t", "batch_size"}
    assert sections["training"].keys() >= {"instruments", "target_instrument"}


def loaded_by_pymss(path: Path) -> torch.nn.Module:
    """Load the pair as pymss 2.1 does: the kind of model from the configuration, then the weights, strictly."""
    pymss_core = pytest.importorskip("pymss_core", reason="pymss-core needs torch 2.7.1")
    configuration = pymss_core.load_config(path.with_suffix(".yaml"))
    kind = pymss_core.detect_model_type(configuration)
    state_dict = pymss_core.load_state_dict(path)
    overrides: dict[str, Any] = {}
    if kind == "mel_band_roformer":
        # It counts the layers of these heads in the weights, and silences nothing in these models.
        layers = {key for key in state_dict if re.fullmatch(r"mask_estimators\.0\.to_freqs\.0\.0\.\d+\.weight", key)}
        overrides = {"mlp_hidden_layers": len(layers) - 1, "zero_dc": False}
    theirs, _ = pymss_core.get_model_from_config(kind, path.with_suffix(".yaml"), model_kwargs_override=overrides)
    theirs.load_state_dict(state_dict)
    model: torch.nn.Module = theirs
    return model.eval()


def loaded_by_bs_roformer(path: Path) -> torch.nn.Module:
    """Load the weights into the classes of BS-RoFormer, whose keys were plain up to version 0.4."""
    import bs_roformer

    state_dict = torch.load(path, weights_only=True)
    section = yaml.load(path.with_suffix(".yaml").read_text(), yaml.FullLoader)["model"]
    # The other path through attention is deprecated in PyTorch.
    section |= {"num_residual_streams": 1, "flash_attn": False}
    if "num_bands" in section:
        theirs = bs_roformer.MelBandRoformer(**section, linear_transformer_depth=0, add_value_residual=False)
    else:
        theirs = bs_roformer.BSRoformer(**section)
        for module in theirs.modules():
            if hasattr(module, "to_value_residual_mix"):
                module.to_value_residual_mix = None  # which no checkpoint before version 0.5 has
    first = int("num_bands" in section)
    theirs.load_state_dict({key: state_dict[of_0_4(key, first)] for key in theirs.state_dict()})
    assert len(theirs.state_dict()) == len(state_dict)
    model: torch.nn.Module = theirs
    return model.eval()


def of_0_4(key: str, first: int) -> str:
    """Return the key of version 0.4: the first transformer of a group has the number 0, and nothing is in a branch."""
    parts = key.replace(".branch.", ".").split(".")
    return ".".join([*parts[:2], str(int(parts[2]) - first), *parts[3:]] if parts[0] == "layers" else parts)


OF_OTHERS = {
    **{name: case for name, case in CASES.items() if name != "pope"},
    "mel, deep, not silent at 0 Hz": (MEL | {"mask_estimator_depth": 2, "zero_dc": False, "num_stems": 2}, TWO),
    "bs, not silent at 0 Hz": (TINY | {"zero_dc": False, "stereo": True}, ONE),
    "bs, own sizes": (TINY | {"stft_normalized": True, "stft_win_length": 48, "time_transformer_depth": 2}, ONE),
}


@pytest.mark.parametrize("name", OF_OTHERS)
@pytest.mark.parametrize("load", [loaded_by_pymss, loaded_by_bs_roformer])
def test_other_programs_make_the_same_audio_of_the_pair(
    name: str, load: Callable[[Path], torch.nn.Module], tmp_path: Path
) -> None:
    arguments, sections = OF_OTHERS[name]
    if load is loaded_by_bs_roformer:  # which has neither another expansion nor skip connections
        arguments = arguments | {"mlp_expansion_factor": 4, "skip_connection": False}
    model = made(**arguments)
    path = tmp_path / "model.ckpt"
    save_checkpoint(path, model, configuration=sections, layout="msst")
    theirs = load(path)
    torch.manual_seed(1)
    audio = torch.randn(1, 2 if model.configuration["stereo"] else 1, 16 * 441) + 0.5  # with something at 0 Hz
    with torch.no_grad():
        expected = model(audio)
        torch.testing.assert_close(theirs(audio).reshape_as(expected), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_residual_streams": 2}, "num_residual_streams"),
        ({"use_value_residual_learning": True}, "use_value_residual_learning"),
        (
            {"mask_filter_bank": BANK, "freqs_per_bands": None},
            "the layers|the band layout|mask_filter_bank",
        ),
        ({"ff_mult": 2}, "ff_mult"),
        ({"stft_window_fn": torch.hamming_window}, "stft_window_fn"),
        ({"residual_in_first_group_only": True}, "residual_in_first_group_only"),
        ({"scale": 0.3}, "scale"),
    ],
)
def test_what_those_programs_cannot_build_is_refused_by_name(
    arguments: dict[str, Any], named: str, tmp_path: Path
) -> None:
    arguments = {name: value for name, value in (TINY | arguments).items() if value is not None}
    with pytest.raises(CheckpointError, match=named):
        save_checkpoint(
            tmp_path / "a.ckpt", made(**arguments), configuration={"training": {"instruments": ["a"]}}, layout="msst"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [None, ["vocals"], ["a", "b", "c"]])
def test_stems_without_names_are_refused_with_the_remedy(names: list[str] | None, tmp_path: Path) -> None:
    model = made(**TINY | {"num_stems": 2})
    with pytest.raises(CheckpointError, match=r"has 2 stems.*Pass configuration=\{'training'"):
        save_checkpoint(tmp_path / "a.ckpt", model, configuration={"training": {"instruments": names}}, layout="msst")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        TINY | {"num_stems": 2},
        MEL,
        TINY | {"use_shared_bias": True},
        {
            **{name: value for name, value in TINY.items() if name != "freqs_per_bands"},
            "mask_filter_bank": BANK,
        },
    ],
    ids=["bs", "mel", "shared biases", "own bands"],
)
def test_safetensors_hold_the_configuration_too(arguments: dict[str, Any], tmp_path: Path) -> None:
    model = made(**arguments)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, configuration=TWO)
    torch.testing.assert_close(estimate(from_checkpoint(path)), estimate(model), rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["configuration"])["training"] == TWO["training"]


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout='uvr' is neither"):
        save_checkpoint(tmp_path / "a.ckpt", made(**TINY), layout="uvr")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_pair_is_read_as_a_configuration_of_msst(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.ckpt", made(**MEL), configuration={"training": {"instruments": ["x"]}}, layout="msst")
    model = read_configuration(tmp_path / "a.yaml")["model"]
    assert (model["mask_estimator_depth"], model["num_bands"], model["sample_rate"]) == (1, 60, 44100)
