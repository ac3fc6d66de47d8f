"""What keys and shapes say: golden layouts of public configurations, inference, and translation."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import (
    CheckpointError,
    from_configuration,
    infer_configuration,
    read_configuration,
    translate_state_dict,
)
from hunterFormsBS.options import idle_options
from tests.models import SMALL, SMALL_BS, SMALL_MEL

CONFIGS = Path(__file__).resolve().parents[3] / "shared" / "configs"

# The model sections of public configurations, as far as they differ from these.
FREQS_PER_BANDS = (*(2,) * 24, *(4,) * 12, *(12,) * 8, *(24,) * 8, *(48,) * 8, 128, 129)
COMMON: dict[str, Any] = {
    "depth": 6,
    "stereo": True,
    "num_stems": 1,
    "time_transformer_depth": 1,
    "freq_transformer_depth": 1,
    "dim_head": 64,
    "heads": 8,
    "attn_dropout": 0.1,
    "ff_dropout": 0.1,
    "flash_attn": True,
    "dim_freqs_in": 1025,
    "stft_n_fft": 2048,
    "stft_hop_length": 441,
    "stft_win_length": 2048,
    "stft_normalized": False,
    "mask_estimator_depth": 2,
    "multi_stft_resolution_loss_weight": 1.0,
    "multi_stft_resolutions_window_sizes": (4096, 2048, 1024, 512, 256),
    "multi_stft_hop_size": 147,
    "multi_stft_normalized": False,
}
BS = COMMON | {"freqs_per_bands": FREQS_PER_BANDS, "linear_transformer_depth": 0}
MEL = COMMON | {"num_bands": 60, "sample_rate": 44100, "dim": 384, "linear_transformer_depth": 0}
NO_DROPOUT = {"attn_dropout": 0, "ff_dropout": 0}
EXTRAS = {"mlp_expansion_factor": 4, "use_torch_checkpoint": False, "skip_connection": False}
KJ = {name: value for name, value in MEL.items() if name != "linear_transformer_depth"} | NO_DROPOUT
PUBLIC: dict[str, dict[str, Any]] = {
    "config_musdb18_bs_roformer": BS | EXTRAS | {"dim": 192, "stft_hop_length": 512},
    "config_musdb18_bs_roformer_384_8_2_485100_sage": BS
    | EXTRAS
    | {"dim": 384, "depth": 8, "num_stems": 4, "mlp_expansion_factor": 2, "sage_attention": True},
    "config_musdb18_mel_band_roformer_all_stems": MEL | EXTRAS | NO_DROPOUT | {"num_stems": 4},
    "config_musdb18_mel_band_roformer_sage": MEL
    | NO_DROPOUT
    | {"num_stems": 4, "mlp_expansion_factor": 2, "sage_attention": True},
    "config_vocals_bs_roformer": BS | EXTRAS | {"dim": 192, "stft_hop_length": 512},
    "config_vocals_mel_band_roformer_kj": KJ,
    "model_bs_roformer_ep_317_sdr_12.9755": BS | {"dim": 512, "depth": 12},
    "model_bs_roformer_ep_937_sdr_10.5309": BS | {"dim": 384, "depth": 12, "stft_hop_length": 512},
    "model_mel_band_roformer_ep_3005_sdr_11.4360": MEL | {"depth": 12},
}


def mel_counts(sample_rate: int, n_fft: int, num_bands: int) -> list[int]:
    mask = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=num_bands) > 0
    mask[0, 0] = mask[-1, -1] = True
    return np.count_nonzero(mask, axis=1).tolist()


def golden_shapes(stated: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Derive keys and shapes of a Music-Source-Separation-Training model from its arguments."""
    mel = "num_bands" in stated
    dim, inner = stated["dim"], stated["heads"] * stated["dim_head"]
    counts = stated.get("freqs_per_bands")
    counts = mel_counts(stated["sample_rate"], stated["stft_n_fft"], stated["num_bands"]) if mel else counts
    for band, count in enumerate(counts):
        width = count * (4 if stated.get("stereo") else 2)
        yield f"band_split.to_features.{band}.0.gamma", (width,)
        yield f"band_split.to_features.{band}.1.weight", (dim, width)
        yield f"band_split.to_features.{band}.1.bias", (dim,)
        hidden = [dim * stated.get("mlp_expansion_factor", 4)] * (stated["mask_estimator_depth"] - (not mel))
        sizes = [dim, *hidden, 2 * width]
        for stem in range(stated.get("num_stems", 1)):
            for layer, (size_in, size_out) in enumerate(pairwise(sizes)):
                yield f"mask_estimators.{stem}.to_freqs.{band}.0.{2 * layer}.weight", (size_out, size_in)
                yield f"mask_estimators.{stem}.to_freqs.{band}.0.{2 * layer}.bias", (size_out,)
    for group in range(stated["depth"]):
        for axis, layers in enumerate((stated["time_transformer_depth"], stated["freq_transformer_depth"])):
            for layer in range(layers):
                attention, feed_forward = (f"layers.{group}.{axis}.layers.{layer}.{part}" for part in (0, 1))
                yield f"{attention}.norm.gamma", (dim,)
                yield f"{attention}.to_qkv.weight", (3 * inner, dim)
                yield f"{attention}.to_gates.weight", (stated["heads"], dim)
                yield f"{attention}.to_gates.bias", (stated["heads"],)
                yield f"{attention}.to_out.0.weight", (dim, inner)
                yield f"{attention}.rotary_embed.freqs", (stated["dim_head"] // 2,)
                yield f"{feed_forward}.net.0.gamma", (dim,)
                yield f"{feed_forward}.net.1.weight", (4 * dim, dim)
                yield f"{feed_forward}.net.1.bias", (4 * dim,)
                yield f"{feed_forward}.net.4.weight", (dim, 4 * dim)
                yield f"{feed_forward}.net.4.bias", (dim,)
            if mel:
                yield f"layers.{group}.{axis}.norm.gamma", (dim,)
    if not mel:
        yield "final_norm.gamma", (dim,)


def shapes_only(stated: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in golden_shapes(stated)}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_configurations_build_with_the_keys_and_shapes_of_upstream(name: str) -> None:
    with torch.device("meta"):
        model = from_configuration(PUBLIC[name])
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == dict(golden_shapes(PUBLIC[name]))
    assert not model.training


@pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"no public configurations at {CONFIGS}")
@pytest.mark.parametrize("name", PUBLIC)
def test_public_configuration_files_say_what_is_tested_here(name: str) -> None:
    assert set(PUBLIC) == {path.stem for path in CONFIGS.glob("*.yaml")}
    path = CONFIGS / f"{name}.yaml"
    assert read_configuration(path)["model"] == PUBLIC[name]
    with torch.device("meta"):
        assert from_configuration(path).configuration["stft_hop_length"] == PUBLIC[name]["stft_hop_length"]


@pytest.mark.parametrize("stated", [SMALL_BS, SMALL_MEL, PUBLIC["config_vocals_bs_roformer"], KJ])
def test_shapes_determine_what_can_be_seen_in_shapes(stated: dict[str, Any]) -> None:
    mel = "num_bands" in stated
    arguments, undetermined = infer_configuration(shapes_only(stated))
    expected = {name: value for name, value in stated.items() if name in (*SMALL, "stft_n_fft", "stereo", "num_stems")}
    expected["num_bands" if mel else "freqs_per_bands"] = stated["num_bands" if mel else "freqs_per_bands"]
    expected |= {"stereo": stated.get("stereo", False), "num_stems": stated.get("num_stems", 1)}
    expected |= {"mlp_expansion_factor": stated.get("mlp_expansion_factor", 4), "linear_transformer_depth": 0}
    expected |= {"mask_estimator_depth": stated["mask_estimator_depth"] - (not mel), "ff_mult": 4}
    expected |= {"final_norm": not mel, "norm_output": mel, "use_pope": False, "use_value_residual_learning": False}
    expected |= {"num_residual_streams": 1, "num_residual_fracs": 1, "mc_hyper_conn_sinkhorn_iters": None}
    depths = ("freq_conformer_depth", "mask_fno_modes", "mask_transformer_depth", "n_wsa_sinks", "time_conformer_depth")
    expected |= dict.fromkeys(depths, 0)
    expected |= dict.fromkeys(("siamese", "use_hyperACE", "use_shared_bias"), False)
    expected |= {"use_rotary_pos": True}
    assert arguments == expected
    assert {"stft_hop_length", "stft_window_fn", "skip_connection", "zero_dc", "sample_rate"} <= set(undetermined)
    rest = set(inspect.signature(BandSplitRotator).parameters) - {"dim_freqs_in"} - idle_options(arguments)
    assert {*arguments, *undetermined} == rest | set(arguments)
    assert not set(arguments) & set(undetermined)


def test_mono_and_stereo_are_told_apart_where_the_bins_allow_it() -> None:
    for stereo in (True, False):
        inferred = infer_configuration(shapes_only(SMALL_BS | {"stereo": stereo})).arguments
        assert inferred["stereo"] is stereo
    even = infer_configuration(shapes_only(SMALL_BS | {"freqs_per_bands": (4, 8)}))
    assert {"stereo", "freqs_per_bands", "stft_n_fft"} <= set(even.undetermined)


def test_translation_leaves_this_packages_keys_and_names_unknown_ones() -> None:
    weights = shapes_only(SMALL_BS)
    assert translate_state_dict(weights) == weights
    strange = {f"htdemucs.{number}": torch.ones(1) for number in range(30)}
    with pytest.raises(CheckpointError, match=r"30 unknown keys.*htdemucs\.0, htdemucs\.1, .* and 10 more"):
        translate_state_dict(weights | strange)


def test_translation_renames_regroups_and_unwraps() -> None:
    one = torch.ones(1)
    upstream = {
        "layers.0.1.layers.0.0.branch.norm.gamma": one,
        "layers.1.2.layers.0.0.branch.learned_value_residual_mix.0.weight": one,
        "layers.1.2.norm.gamma": one,
    }
    assert list(translate_state_dict(upstream)) == [
        "layers.0.0.layers.0.0.norm.gamma",
        "layers.1.1.layers.0.0.to_value_residual_mix.weight",
        "layers.1.1.norm.gamma",
    ]


def test_what_cannot_be_one_model_is_refused() -> None:
    key = "layers.0.0.layers.0.0.norm.gamma"
    other = key.replace("norm", "branch.norm")
    with pytest.raises(CheckpointError, match="two tensors of the state dict would be"):
        translate_state_dict({key: torch.ones(1), other: torch.ones(1)})
    weights = shapes_only(SMALL_BS)
    with pytest.raises(CheckpointError, match=r"layers\.0 has 1 transformers"):
        infer_configuration({key: tensor for key, tensor in weights.items() if ".1.layers." not in key})
    streams = {"layers.0.0.layers.0.0.static_alpha": torch.ones(4, 4)}
    with pytest.raises(CheckpointError, match="no number of residual streams explains"):
        infer_configuration(weights | streams)


def test_older_hyper_connections_get_the_axis_that_they_lack() -> None:
    prefix = "layers.0.0.layers.0.0."
    fn = torch.ones(8, 5)
    translated = translate_state_dict({f"{prefix}dynamic_alpha_fn": fn, f"{prefix}h_post_scale": torch.ones(())})
    assert translated[f"{prefix}dynamic_alpha_fn"].shape == (1, 8, 5)
    assert translate_state_dict({f"{prefix}dynamic_alpha_fn": fn})[f"{prefix}dynamic_alpha_fn"].shape == (8, 5)
