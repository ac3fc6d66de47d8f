"""Checkpoints of every family become the model that made them, or an error that says why not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bs_roformer import BSRoformer as UpstreamBS
from bs_roformer import MelBandRoformer as UpstreamMel
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.bandSplit import DEFAULT_FREQS_PER_BANDS
from hunterFormsBS.checkpoint import CheckpointError, from_checkpoint, from_configuration, save_checkpoint
from tests.models import SMALL, SMALL_BS, SMALL_MEL


def random_weights(stated: Mapping[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = from_configuration(stated).state_dict()
    return {key: torch.randn(tensor.shape, generator=generator) * 0.3 for key, tensor in weights.items()}


def saved(folder: Path, content: object, name: str = "model.ckpt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def estimate(model: BandSplitRotator, length: int = 1000) -> Tensor:
    audio = torch.randn(1, 2 if model.stereo else 1, length, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(audio)


UPSTREAM_BS = SMALL_BS | {"num_stems": 2}
UPSTREAM_MEL: dict[str, Any] = SMALL | {
    "stft_n_fft": 256,
    "stft_hop_length": 63,
    "stft_win_length": 256,
    "num_bands": 6,
    "sample_rate": 8000,
    "linear_transformer_depth": 0,
    "stereo": True,
}


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (UpstreamBS, UPSTREAM_BS),
        (UpstreamBS, UPSTREAM_BS | {"num_residual_streams": 1, "zero_dc": True, "mask_estimator_depth": 3}),
        (UpstreamBS, UPSTREAM_BS | {"num_residual_fracs": 2, "mc_hyper_conn_sinkhorn_iters": 5, "stereo": False}),
        (UpstreamBS, UPSTREAM_BS | {"freq_range": (2, 31), "freqs_per_bands": (4, 25), "num_residual_streams": 1}),
        (UpstreamBS, UPSTREAM_BS | {"use_pope": True, "time_transformer_depth": 2}),
        (UpstreamBS, UPSTREAM_BS | {"depth": 1}),
        (UpstreamMel, UPSTREAM_MEL),
        (UpstreamMel, UPSTREAM_MEL | {"linear_transformer_depth": 1, "mask_estimator_depth": 2}),
        (UpstreamMel, UPSTREAM_MEL | {"num_residual_streams": 1, "num_stems": 2}),
        (UpstreamMel, UPSTREAM_MEL | {"add_value_residual": False, "sample_rate": 48000, "num_bands": 8}),
    ],
)
def test_checkpoints_of_the_installed_upstream_package_agree(
    kind: type[torch.nn.Module], arguments: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # upstream's own
        upstream = kind(**arguments).eval()
        for name, parameter in upstream.named_parameters():
            if not name.endswith("freqs"):
                parameter.data += 0.1 * torch.randn_like(parameter)
        audio = torch.randn(1, 2 if arguments["stereo"] else 1, 16 * 63 * 2)
        with torch.no_grad():
            expected = upstream(audio)
    model = from_checkpoint(saved(tmp_path, upstream.state_dict()), arguments)
    with torch.no_grad():
        actual = model(audio)[..., : expected.shape[-1]]
    assert (actual - expected.reshape(actual.shape)).abs().max() <= 1e-5 * expected.abs().max()

    learned = arguments["depth"] > 1 and arguments.get("add_value_residual", True)
    mix = model.configuration["learned_value_residual_mix"]
    assert mix == (None if not learned else True if kind is UpstreamBS else "swapped")


def test_one_warning_names_what_nothing_determined(tmp_path: Path) -> None:
    path = saved(tmp_path, random_weights(SMALL_BS))
    with pytest.warns(UserWarning, match="nothing determines these arguments") as caught:
        from_checkpoint(path)
    (warning,) = caught
    told = ("stft_hop_length=16", "stft_win_length=64", "stft_window_fn='hann_window'", "skip_connection=False")
    assert all(text in str(warning.message) for text in (*told, "zero_dc=True"))
    assert warning.filename == __file__
    arguments = {"stft_win_length": 64, "stft_normalized": False, "stft_window_fn": torch.hann_window, "zero_dc": True}
    complete = from_checkpoint(path, stft_hop_length=16, skip_connection=False, **arguments)
    assert torch.equal(estimate(complete), estimate(from_checkpoint(path, SMALL_BS)))
    assert "Pass its configuration, or pass the arguments that differ" in str(warning.message)
    with pytest.warns(
        UserWarning,
        match="those of Music-Source-Separation-Training, BS-RoFormer are taken: stft_hop_length=16. "
        "State them in the configuration, or pass",
    ):
        from_checkpoint(path, {"dim": 8})


def test_upstream_decides_whether_an_unstated_zero_dc_is_true(tmp_path: Path) -> None:
    for stated in (SMALL_BS, SMALL_MEL):
        path = saved(tmp_path, random_weights(stated))
        assert from_checkpoint(path, stated).zero_dc
        assert from_checkpoint(path, stated, upstream="msst").zero_dc
        assert not from_checkpoint(path, stated, upstream="lucidrains").zero_dc
        assert not from_checkpoint(path, stated, zero_dc=False).zero_dc


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 5}, "states depth=5, but by the tensors depth=2"),
        (
            {"mask_estimator_depth": 4},
            r"mask_estimator_depth=4 \(.* 3 here\), but by the tensors mask_estimator_depth=1",
        ),
        ({"num_stems": 1}, "states num_stems=1, but by the tensors num_stems=3"),
        ({"add_value_residual": True}, "add_value_residual=True, but by the tensors use_value_residual_learning=False"),
        ({"stereo": False}, "states stereo=False, but by the tensors stereo=True"),
        ({"stft_n_fft": "64"}, "states stft_n_fft='64', but by the tensors stft_n_fft=64"),
        ({"stft_n_fft": 128}, "states stft_n_fft=128, but by the tensors stft_n_fft=64"),
        ({"freqs_per_bands": [3, 30]}, r"freqs_per_bands=\[3, 30\], but by the tensors freqs_per_bands=\(4, 8, 21\)"),
        ({"freq_range": [0, 30]}, r"states freq_range=\[0, 30\], but by the tensors there is no freq_range"),
    ],
)
def test_shapes_win_over_the_configuration_with_a_warning_that_names_both(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path, random_weights(SMALL_BS))
    expected = estimate(from_checkpoint(path, SMALL_BS))
    stated = {**SMALL_BS, **changes}
    if "add_value_residual" in changes:
        del stated["freqs_per_bands"]  # the configuration is for the other kind
    with pytest.warns(UserWarning, match=message):
        assert torch.equal(estimate(from_checkpoint(path, stated)), expected)


def test_a_mel_layout_that_does_not_fit_gives_way_to_one_that_does(tmp_path: Path) -> None:
    path = saved(tmp_path, random_weights(SMALL_MEL))
    expected = estimate(from_checkpoint(path, SMALL_MEL))
    with pytest.warns(UserWarning, match="sample_rate=48000, but by the tensors sample_rate=44100"):
        assert torch.equal(estimate(from_checkpoint(path, {**SMALL_MEL, "sample_rate": 48000})), expected)


@pytest.mark.parametrize("counts", [DEFAULT_FREQS_PER_BANDS, (25, 1000)])
def test_a_configuration_of_bands_side_by_side_for_mel_bands_is_said_to_disagree(
    tmp_path: Path, counts: tuple[int, ...]
) -> None:
    path = saved(tmp_path, random_weights(SMALL_MEL))
    stated = {key: value for key, value in SMALL_MEL.items() if key not in ("num_bands", "sample_rate")}
    with pytest.warns(UserWarning, match=r"states freqs_per_bands=.*, but by the tensors there is no freqs_per_bands"):
        model = from_checkpoint(path, stated | {"freqs_per_bands": counts})
    assert torch.equal(estimate(model), estimate(from_checkpoint(path, SMALL_MEL)))


def test_an_unusual_layout_needs_what_it_was_trained_with(tmp_path: Path) -> None:
    unusual = SMALL_MEL | {"sample_rate": 40000, "num_bands": 50}
    path = saved(tmp_path, random_weights(unusual))
    assert from_checkpoint(path, unusual).configuration["sample_rate"] == 40000
    with pytest.raises(CheckpointError, match=r"50 bands.*fit no layout.*pass the sample_rate, stft_n_fft and stereo"):
        from_checkpoint(path)


def test_bands_that_may_leave_bins_out_are_said_to_be_undetermined(tmp_path: Path) -> None:
    stated = SMALL_BS | {"freqs_per_bands": (4, 25), "freq_range": (2, 31)}
    path = saved(tmp_path, random_weights(stated))
    assert from_checkpoint(path, stated).configuration["freq_range"] == (2, 31)
    with pytest.warns(UserWarning, match="freq_range=None"):
        from_checkpoint(path)


@pytest.mark.parametrize(
    "override",
    [
        {"depth": 3},
        {"heads": 4},
        {"stereo": False},
        {"stft_n_fft": 128},
        {"freqs_per_bands": (3, 30)},
        {"use_pope": True},
    ],
)
def test_an_override_that_the_weights_contradict_is_refused(tmp_path: Path, override: dict[str, Any]) -> None:
    path = saved(tmp_path, random_weights(SMALL_BS))
    with pytest.raises(CheckpointError, match=f"{next(iter(override))}=.* cannot be"):
        from_checkpoint(path, SMALL_BS, **override)


def test_one_head_of_many_is_loaded_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, random_weights(SMALL_BS))
    every = estimate(from_checkpoint(path, SMALL_BS))
    for stems in ([1], [2, 0]):
        model = from_checkpoint(path, SMALL_BS, stems=stems)
        assert torch.equal(estimate(model), every[:, stems])
        assert len(model.mask_estimators) == model.num_stems == model.configuration["num_stems"] == len(stems)


@pytest.mark.parametrize("stems", [[], [3], [-1], [0, 0], [1, True], ["vocals"], "0", [1.0]])
def test_heads_that_are_not_there_are_refused(tmp_path: Path, stems: Any) -> None:
    with pytest.raises(CheckpointError, match=r"stems=.* cannot be loaded: pass .* from 0 to 2"):
        from_checkpoint(saved(tmp_path, random_weights(SMALL_BS)), SMALL_BS, stems=stems)


def test_incomplete_and_foreign_weights_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    weights = random_weights(SMALL_BS)

    def refused(content: dict[str, Tensor], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            from_checkpoint(saved(tmp_path, content), SMALL_BS)

    def without(part: str) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in weights.items() if not key.startswith(part)}

    refused(without("mask_estimators.1."), "lacks mask estimators.*number 1 is missing, found are 0, 2")
    refused(without("mask_estimators."), "lacks mask estimators.*found are none")
    refused(without("layers."), "lacks layer groups")
    refused(
        without("mask_estimators.2.to_freqs.1."), r"it lacks 4 tensors: mask_estimators\.2\.to_freqs\.1\.0\.0\.weight"
    )
    refused(without("layers.1.1."), "it lacks 11 tensors")
    refused(weights | {"mask_estimators.0.to_freqs.9.0.0.bias": torch.ones(1)}, "it has in excess 1 tensors")
    refused(weights | {"layers.1.0.layers.0.0.norm.gamma": torch.ones(9)}, r"misshapen.*\(9,\) instead of \(8,\)")
    refused(weights | {"band_split.to_features.0.1.weight": torch.ones(3)}, r"shape \(3,\), but must have 2 axes")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_get_the_dtype_asked_for_whatever_that_of_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {key: tensor.to(torch.float16) for key, tensor in random_weights(SMALL_BS).items()}
    path = saved(tmp_path, weights)
    plain = from_checkpoint(path, SMALL_BS)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    assert torch.equal(plain.final_norm.gamma, weights["final_norm.gamma"].float())
    asked = from_checkpoint(path, SMALL_BS, dtype=dtype)
    assert asked.band_split.to_features[0][1].weight.dtype == dtype
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.2, torch.float64: 1e-5}[dtype]
    expected = estimate(plain)
    assert (estimate(asked) - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"zero_dc": True, "match_input_audio_length": False, "stft_window_fn": torch.hamming_window},
        {"use_value_residual_learning": True, "learned_value_residual_mix": False},
        {"use_value_residual_learning": True, "learned_value_residual_mix": "swapped", "linear_transformer_depth": 1},
        {"num_residual_streams": 2, "mc_hyper_conn_sinkhorn_iters": 3},
        {"num_residual_fracs": 2, "skip_connection": True, "use_pope": True},
        {"mask_filter_bank": torch.ones(2, 33, dtype=torch.bool), "final_norm": True},
        {"freqs_per_bands": (3, 30), "norm_output": True, "sample_rate": 8000},
        {"sample_rate": 8000, "num_bands": 5, "stereo": True, "freq_range": (0, 30), "mask_estimator_depth": 2},
    ],
)
def test_a_saved_model_comes_back_the_same_with_no_other_file(tmp_path: Path, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    base: dict[str, Any] = SMALL | {"stft_n_fft": 64, "stft_hop_length": 16, "stft_win_length": 64, "num_stems": 2}
    base |= {"freqs_per_bands": (4, 29), "dim_freqs_in": 33}
    if "mask_filter_bank" in arguments or "num_bands" in arguments:
        del base["freqs_per_bands"]
    model = BandSplitRotator(**(base | arguments)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_checkpoint(tmp_path / "own.ckpt", model)
    loaded = from_checkpoint(tmp_path / "own.ckpt")
    assert torch.equal(estimate(loaded), estimate(model))
    assert not loaded.training
    for name, value in arguments.items():
        kept = loaded.configuration[name]
        assert torch.equal(kept, value) if isinstance(value, Tensor) else kept == value


def test_a_saved_checkpoint_keeps_the_sections_given_and_needs_no_class_to_read(tmp_path: Path) -> None:
    sections = {
        "audio": {"sample_rate": np.int64(44100)},
        "training": {"instruments": ("a", "b"), "lr": np.float32(0.5)},
    }
    model = from_configuration(SMALL_BS)
    save_checkpoint(tmp_path / "own.ckpt", model, configuration=sections | {"model": "replaced"})
    content = torch.load(tmp_path / "own.ckpt", weights_only=True)
    assert content["upstream"] == "hunterFormsBS"
    assert content["configuration"]["audio"] == {"sample_rate": 44100}
    assert content["configuration"]["training"] == {"instruments": ("a", "b"), "lr": 0.5}
    assert content["configuration"]["model"]["stft_window_fn"] == "hann_window"


def test_wrapped_models_are_saved_as_what_they_wrap(tmp_path: Path) -> None:
    model = from_configuration(SMALL_BS)
    for wrapped in (torch.compile(model, backend="eager"), torch.nn.DataParallel(model)):
        save_checkpoint(tmp_path / "own.ckpt", wrapped)
        assert torch.equal(estimate(from_checkpoint(tmp_path / "own.ckpt")), estimate(model))


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.ckpt"
    path.write_bytes(b"old")

    def fail_midway(content: object, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(torch, "save", fail_midway)
    with pytest.raises(RuntimeError, match="disk full"):
        save_checkpoint(path, from_configuration(SMALL_BS))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_checkpoint_cannot_hold_is_refused_before_it_is_written(tmp_path: Path) -> None:
    model = from_configuration(SMALL_BS)
    with pytest.raises(TypeError, match=r"\['training'\]\['loss'\] is <function"):
        save_checkpoint(tmp_path / "a.ckpt", model, configuration={"training": {"loss": estimate}})
    with pytest.raises(TypeError, match="model must be a BandSplitRotator, but is a Linear"):
        save_checkpoint(tmp_path / "a.ckpt", torch.nn.Linear(1, 1))
    assert not list(tmp_path.iterdir())


def test_a_mix_that_keys_cannot_date_is_named(tmp_path: Path) -> None:
    # Version 0.9.2 of BS-RoFormer changed what linear attention does with it, and no key.
    stated = {**UPSTREAM_MEL, "linear_transformer_depth": 1, "num_residual_streams": 1}
    model = from_configuration(stated, upstream="lucidrains")
    old = {
        key.replace("to_value_residual_mix", "learned_value_residual_mix.0"): v for key, v in model.state_dict().items()
    }
    old = {key.replace(".layers.0.0.", ".layers.0.0.branch."): tensor for key, tensor in old.items()}
    path = saved(tmp_path, old)
    with pytest.warns(UserWarning, match="learned_value_residual_mix='swapped'"):
        newer = from_checkpoint(path, stated)
    older = from_checkpoint(path, stated, learned_value_residual_mix="swapped_everywhere")
    assert not torch.allclose(estimate(older), estimate(newer))
