"""What a model refuses: the message has the value received and what to do instead, and nothing heavy has run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hunterFormsBS import BandSplitRotator

Build = Callable[..., BandSplitRotator]


def refusal(kind: type[Exception], function: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(kind) as caught:
        function(*arguments, **keywords)
    assert type(caught.value) is kind
    return str(caught.value)


# Constructor

SIZES = (
    "dim",
    "depth",
    "dim_freqs_in",
    "dim_head",
    "ff_mult",
    "heads",
    "mc_hyper_conn_sinkhorn_iters",
    "mlp_expansion_factor",
    "multi_stft_hop_size",
    "num_residual_fracs",
    "num_residual_streams",
    "num_stems",
    "stft_hop_length",
    "stft_n_fft",
    "stft_win_length",
)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, True])
def test_sizes_below_one_are_refused(name: str, value: Any, tiny_model: Build) -> None:
    message = refusal(ValueError, tiny_model, **{name: value})
    assert f"{name}={value}" in message
    assert "at least 1" in message


@pytest.mark.parametrize(
    "name",
    [
        "linear_transformer_depth",
        "mask_estimator_depth",
        "mask_transformer_depth",
        "time_conformer_depth",
        "freq_conformer_depth",
    ],
)
def test_depths_that_may_be_zero_may_not_be_negative(name: str, tiny_model: Build) -> None:
    message = refusal(ValueError, tiny_model, **{name: -1})
    assert f"{name}=-1" in message
    assert "at least 0" in message
    tiny_model(**{name: 0})(torch.randn(1, 50))


@pytest.mark.parametrize("name", [*SIZES, "linear_transformer_depth", "mask_estimator_depth", "time_transformer_depth"])
@pytest.mark.parametrize("value", [2.0, "2", [2]])
def test_sizes_that_are_no_integers_are_refused(name: str, value: Any, tiny_model: Build) -> None:
    message = refusal(TypeError, tiny_model, **{name: value})
    assert f"{name}={value!r}" in message
    assert "integer" in message


@pytest.mark.parametrize(
    "name",
    ["dim", "depth", "heads", "dim_head", "mlp_expansion_factor", "num_stems", "stft_n_fft", "multi_stft_hop_size"],
)
def test_sizes_without_a_default_of_none_may_not_be_none(name: str, tiny_model: Build) -> None:
    assert f"{name}=None" in refusal(TypeError, tiny_model, **{name: None})


def test_numpy_integers_are_integers(tiny_model: Build) -> None:
    assert tiny_model(num_stems=np.int64(2))(torch.randn(1, 50)).shape == (1, 2, 1, 50)


@pytest.mark.parametrize("name", ["attn_dropout", "ff_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_dropout_outside_the_half_open_interval_is_refused(name: str, value: float, tiny_model: Build) -> None:
    message = refusal(ValueError, tiny_model, **{name: value})
    assert f"{name}={value}" in message
    assert "less than 1" in message


@pytest.mark.parametrize("name", ["attn_dropout", "ff_dropout"])
@pytest.mark.parametrize("value", [0, 0.0, 0.999])
def test_dropout_inside_the_half_open_interval_is_accepted(name: str, value: float, tiny_model: Build) -> None:
    tiny_model(**{name: value})


# Each case: arguments, and what the message has to hold.
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "scale zero": ({"scale": 0.0}, ["scale=0.0", "leave it out"]),
    "scale negative": ({"scale": -1}, ["scale=-1", "leave it out"]),
    "scale nan": ({"scale": float("nan")}, ["scale=nan", "leave it out"]),
    "window longer than frame": ({"stft_win_length": 65}, ["stft_win_length=65", "stft_n_fft=64", "fit"]),
    "hop longer than window": (
        {"stft_win_length": 32, "stft_hop_length": 33},
        ["stft_hop_length=33", "stft_win_length=32", "quarter"],
    ),
    "no window sizes": (
        {"multi_stft_resolutions_window_sizes": ()},
        ["multi_stft_resolutions_window_sizes=()", "at least one"],
    ),
    "one number as window sizes": (
        {"multi_stft_resolutions_window_sizes": 256},
        ["multi_stft_resolutions_window_sizes=256", "sequence"],
    ),
    "window sizes in a string": (
        {"multi_stft_resolutions_window_sizes": "256"},
        ["multi_stft_resolutions_window_sizes='256'", "sequence"],
    ),
    "window size zero": (
        {"multi_stft_resolutions_window_sizes": (64, 0)},
        ["multi_stft_resolutions_window_sizes: value=0", "at least 1"],
    ),
    "negative weight": (
        {"multi_stft_resolution_loss_weight": -0.5},
        ["multi_stft_resolution_loss_weight=-0.5", "from 0"],
    ),
    "weight nan": (
        {"multi_stft_resolution_loss_weight": float("nan")},
        ["multi_stft_resolution_loss_weight=nan"],
    ),
    "value residual in one layer group": (
        {"use_value_residual_learning": True, "depth": 1},
        ["use_value_residual_learning=True", "depth=1", "at least 2"],
    ),
    "mix without value residual": (
        {"learned_value_residual_mix": False},
        ["learned_value_residual_mix=False", "use_value_residual_learning=True"],
    ),
    "unknown mix": (
        {"use_value_residual_learning": True, "learned_value_residual_mix": "swap"},
        ["learned_value_residual_mix='swap'", "'swapped'", "'swapped_everywhere'"],
    ),
    "skip in one layer group": (
        {"skip_connection": True, "depth": 1},
        ["skip_connection=True", "depth=1", "at least 2"],
    ),
    "fracs that do not divide": ({"num_residual_fracs": 5}, ["dim=12", "num_residual_fracs=5", "multiple"]),
    "constraint of one stream": (
        {"mc_hyper_conn_sinkhorn_iters": 2},
        ["mc_hyper_conn_sinkhorn_iters=2", "num_residual_streams", "leave it out"],
    ),
    "sage without flash": (
        {"sage_attention": True, "flash_attn": False},
        ["sage_attention=True", "flash_attn=False", "leave it out"],
    ),
    "odd head": ({"dim_head": 5}, ["dim_head=5", "even", "use_pope=True"]),
    # Band layouts, SPEC section 9
    "band counts that do not add up": ({"freqs_per_bands": (3, 4)}, ["sum to 7", "33", "change freqs_per_bands"]),
    "band counts that do not add up to the range": (
        {"freqs_per_bands": (3, 4), "freq_range": (0, 10)},
        ["sum to 7", "10", "change freqs_per_bands"],
    ),
    "empty band in the counts": ({"freqs_per_bands": (0, 33)}, ["[0, 33]", "at least 1"]),
    "empty band in the mask": (
        {"mask_filter_bank": torch.tensor([[1] * 33, [0] * 33], dtype=torch.bool)},
        ["bands 1 of 2", "remove"],
    ),
    "uncovered bins": (
        {"mask_filter_bank": torch.tensor([[1] * 30 + [0] * 3], dtype=torch.bool)},
        ["30-32", "add them to a band", "freq_range"],
    ),
    "mask of the wrong width": (
        {"mask_filter_bank": torch.ones(2, 32, dtype=torch.bool)},
        ["32 columns", "33", "stft_n_fft"],
    ),
    "number of bands that disagrees": (
        {"mask_filter_bank": torch.ones(1, 33, dtype=torch.bool), "num_bands": 2},
        ["num_bands=2", "1 bands", "leave num_bands out"],
    ),
    "range upside down": ({"freq_range": (10, 3)}, ["freq_range=(10, 3)", "low < high"]),
    "more mel bands than bins": (
        {"num_bands": 40, "sample_rate": 44100},
        ["num_bands=40", "larger stft_n_fft", "fewer bands"],
    ),
    "sample rate zero": ({"num_bands": 4, "sample_rate": 0}, ["sample_rate", "0", "positive"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_constructor_refuses_with_value_and_remedy(name: str, tiny_model: Build) -> None:
    arguments, fragments = REFUSED[name]
    message = refusal(ValueError, tiny_model, **arguments)
    assert [fragment for fragment in fragments if fragment not in message] == []


def test_mask_that_is_not_boolean_is_refused(tiny_model: Build) -> None:
    message = refusal(TypeError, tiny_model, mask_filter_bank=torch.ones(1, 33))
    assert "torch.float32" in message
    assert "> 0" in message


def test_refusals_come_before_any_layer_is_built(monkeypatch: pytest.MonkeyPatch, tiny_model: Build) -> None:
    monkeypatch.setattr(torch.nn.Linear, "__init__", lambda *_: pytest.fail("a layer was built"))
    for arguments, _ in REFUSED.values():
        refusal(ValueError, tiny_model, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mc_hyper_conn_sinkhorn_iters": 1, "num_residual_fracs": 2},
        {"mc_hyper_conn_sinkhorn_iters": 1, "num_residual_streams": 2},
        {"dim_head": 5, "use_pope": True},
        {"depth": 1},
        {"multi_stft_resolutions_window_sizes": [64]},
        {"multi_stft_resolution_loss_weight": 0},
        {"scale": 0.01},
        {"sage_attention": True},
        {"stft_win_length": 32, "stft_hop_length": 16},
    ],
    ids=lambda case: re.sub(r" at 0x\w+", "", str(case)),
)
def test_neighbours_of_what_is_refused_are_accepted(arguments: Any, tiny_model: Build) -> None:
    tiny_model(**arguments)


def test_number_of_bins_that_disagrees_warns_which_one_is_used(tiny_model: Build) -> None:
    with pytest.warns(UserWarning, match=r"dim_freqs_in=1025 disagrees.*33 is used: pass dim_freqs_in=33") as caught:
        model = tiny_model(dim_freqs_in=1025)
    assert len(caught) == 1
    assert model.mask_filter_bank.shape[1] == 33


def test_number_of_bins_that_agrees_does_not_warn(tiny_model: Build) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_model(dim_freqs_in=33)


def test_unknown_argument_is_refused(tiny_model: Build) -> None:
    assert "dimension" in refusal(TypeError, tiny_model, dimension=3)


# Audio


@pytest.fixture
def mono(tiny_model: Build) -> BandSplitRotator:
    return tiny_model(num_stems=3)


@pytest.mark.parametrize(
    ("stereo", "shape"),
    [
        (False, (2, 2, 50)),
        (True, (2, 1, 50)),
        (True, (2, 3, 50)),
        (True, (2, 50)),
        (False, (50,)),
        (False, (1, 1, 1, 50)),
    ],
)
def test_wrong_channel_count_or_rank_is_refused(stereo: bool, shape: tuple[int, ...], tiny_model: Build) -> None:
    message = refusal(ValueError, tiny_model(stereo=stereo), torch.randn(shape))
    assert str(shape) in message
    assert f"stereo={stereo}" in message
    assert ("(b, 2, t)" if stereo else "(b, t) or (b, 1, t)") in message


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_audio_that_is_not_floating_point_is_refused(dtype: torch.dtype, mono: BandSplitRotator) -> None:
    message = refusal(TypeError, mono, torch.zeros(1, 50).to(dtype))
    assert str(dtype) in message
    assert "floating point" in message


@pytest.mark.parametrize("audio", [np.zeros((1, 50)), [0.0], None])
def test_audio_that_is_no_tensor_is_refused(audio: Any, mono: BandSplitRotator) -> None:
    message = refusal(TypeError, mono, audio)
    assert type(audio).__name__ in message
    assert "pass a tensor" in message


@pytest.mark.parametrize("shape", [(1, 0), (1, 1, 0), (0, 50), (0, 1, 50)])
def test_empty_audio_is_refused(shape: tuple[int, ...], mono: BandSplitRotator) -> None:
    message = refusal(ValueError, mono, torch.zeros(shape))
    assert str(shape) in message
    assert "at least one" in message


# Stems


@pytest.mark.parametrize(
    ("stem_ids", "fragments"),
    [
        ([], ["empty", "at least one stem", "None"]),
        ([0, 0], ["[0, 0]", "twice"]),
        ([3], ["[3]", "0 to 2"]),
        ([-1], ["[-1]", "0 to 2"]),
        ([0, 1, 2, 3], ["[0, 1, 2, 3]", "0 to 2"]),
    ],
    ids=lambda case: re.sub(r" at 0x\w+", "", str(case)),
)
def test_stems_out_of_range_repeated_or_none_are_refused(
    stem_ids: list[int], fragments: list[str], mono: BandSplitRotator
) -> None:
    message = refusal(ValueError, mono, torch.randn(1, 50), active_stem_ids=stem_ids)
    assert [fragment for fragment in ["active_stem_ids", *fragments] if fragment not in message] == []


@pytest.mark.parametrize("stem_ids", [[0.5], ["vocals"], "0", 1, [True], [None]])
def test_stems_that_are_no_integers_are_refused(stem_ids: Any, mono: BandSplitRotator) -> None:
    message = refusal(TypeError, mono, torch.randn(1, 50), active_stem_ids=stem_ids)
    assert f"active_stem_ids={stem_ids!r}" in message


# Targets


@pytest.mark.parametrize(
    ("num_stems", "stereo", "shape", "accepted"),
    [
        (3, False, (2, 2, 1, 50), "(2, 3, 1, 50)"),
        (3, False, (2, 3, 2, 50), "(2, 3, 1, 50)"),
        (3, False, (1, 3, 1, 50), "(2, 3, 1, 50)"),
        (3, False, (2, 3, 1, 49), "(2, 3, 1, 50)"),
        (3, False, (2, 3, 50), "(2, 3, 1, 50)"),
        (3, False, (2, 50), "(2, 3, 1, 50)"),
        (1, True, (2, 1, 50), "(2, 1, 2, 50) or (2, 2, 50)"),
        (1, True, (2, 50), "(2, 1, 2, 50) or (2, 2, 50)"),
        (1, False, (2, 2, 50), "(2, 1, 1, 50) or (2, 1, 50) or (2, 50)"),
        (1, False, (3, 50), "(2, 1, 1, 50) or (2, 1, 50) or (2, 50)"),
        (1, False, (50,), "(2, 1, 1, 50) or (2, 1, 50) or (2, 50)"),
    ],
)
def test_target_of_a_wrong_shape_is_refused(
    num_stems: int, stereo: bool, shape: tuple[int, ...], accepted: str, tiny_model: Build
) -> None:
    model = tiny_model(num_stems=num_stems, stereo=stereo)
    message = refusal(ValueError, model, torch.randn(2, 1 + stereo, 50), torch.randn(shape))
    assert str(shape) in message
    assert f"num_stems={num_stems} pass {accepted}," in message


def test_target_holds_every_stem_also_those_that_are_not_active(mono: BandSplitRotator) -> None:
    audio, target = torch.randn(1, 50), torch.randn(1, 3, 1, 50)
    assert mono(audio, target, active_stem_ids=[1]).isfinite()
    message = refusal(ValueError, mono, audio, target[:, :1], active_stem_ids=[1])
    assert "left out of active_stem_ids" in message


def test_target_that_is_not_floating_point_is_refused(mono: BandSplitRotator) -> None:
    message = refusal(TypeError, mono, torch.randn(1, 50), torch.zeros(1, 3, 1, 50, dtype=torch.int16))
    assert "torch.int16" in message
    assert "floating point" in message


@pytest.mark.parametrize("target", [np.zeros((1, 3, 1, 50)), [0.0]])
def test_target_that_is_no_tensor_is_refused(target: Any, mono: BandSplitRotator) -> None:
    message = refusal(TypeError, mono, torch.randn(1, 50), target)
    assert type(target).__name__ in message
    assert "pass a tensor" in message


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.randn(1, 2, 50),),
        (torch.zeros(1, 50, dtype=torch.int32),),
        (torch.zeros(1, 0),),
        (torch.randn(1, 50), torch.randn(1, 2, 1, 50)),
        (torch.randn(1, 50), None, [3]),
    ],
)
def test_input_is_refused_before_anything_is_computed(
    arguments: tuple[Any, ...], mono: BandSplitRotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stft(*_: Any, **__: Any) -> Tensor:
        pytest.fail("the transform ran")

    monkeypatch.setattr(torch, "stft", stft)
    with pytest.raises((TypeError, ValueError)):
        mono(*arguments)
