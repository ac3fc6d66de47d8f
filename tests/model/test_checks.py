"""Constructor arguments: what a model refuses when it is built, so that nothing fails or lies later."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.options import OPTIONS
from tests.models import TINY

# One of them has names among its values, and the layout checks the number of bands.
BOOLEANS = [name for name, row in OPTIONS.items() if bool in row.kinds and name != "learned_value_residual_mix"]
INTEGERS = [name for name, row in OPTIONS.items() if row.kinds[0] is int and name != "num_bands"]


@pytest.mark.parametrize("value", ["false", "true", "", 0, 1, 2.0, []])
@pytest.mark.parametrize("name", BOOLEANS)
def test_what_is_no_boolean_is_refused_as_one(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name}=.* is not a boolean: pass True or False"):
        BandSplitRotator(**TINY | {name: value})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39, -1, "1", True, 10**400])
@pytest.mark.parametrize("name", ["scale", "multi_stft_resolution_loss_weight", "attn_dropout", "ff_dropout"])
def test_numbers_that_float32_cannot_hold_or_that_are_none_are_refused(name: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{name}="):
        BandSplitRotator(**TINY | {name: value})


def test_a_scale_that_float32_rounds_to_zero_is_refused_and_numbers_of_numpy_are_not() -> None:
    with pytest.raises(ValueError, match=r"^scale=1e-50 is out of range"):
        BandSplitRotator(**TINY | {"scale": 1e-50})
    BandSplitRotator(**TINY | {"scale": np.float32(0.5), "attn_dropout": np.float64(0.5)})


@pytest.mark.parametrize("value", [2**63, 2**40, 10**400])
@pytest.mark.parametrize("name", INTEGERS)
def test_absurd_integers_are_refused_with_the_limit(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=.*at most {OPTIONS[name].option.most}\.$"):
        BandSplitRotator(**TINY | {name: value})


def test_a_model_that_no_memory_holds_is_refused_before_it_is_made() -> None:
    with pytest.raises(ValueError, match=r"more than \S+ parameters, and at most"):
        BandSplitRotator(**TINY | {"dim": 2**16})


@pytest.mark.parametrize("window", [torch.hann_window, torch.bartlett_window, torch.hamming_window, torch.ones])
@pytest.mark.parametrize(
    ("win_length", "hop"),
    [(length, hop) for length in (64, 48) for hop in (16, 32, 47, 48, 60, 63, 64) if hop <= length],
)
def test_hops_are_refused_where_the_inverse_transform_of_pytorch_fails(
    window: Callable[..., torch.Tensor], win_length: int, hop: int
) -> None:
    spectrum = torch.zeros(33, 12, dtype=torch.complex64)
    keywords: dict[str, Any] = {"stft_hop_length": hop, "stft_win_length": win_length, "stft_window_fn": window}
    try:
        torch.istft(spectrum, 64, hop, win_length, window(win_length))
    except RuntimeError:
        with pytest.raises(ValueError, match=rf"^stft_hop_length={hop} with .*samples that {window.__name__} weights"):
            BandSplitRotator(**TINY | keywords)
    else:
        BandSplitRotator(**TINY | keywords)


@pytest.mark.parametrize("length", range(1, 80, 3))
def test_estimates_are_no_longer_than_targets_or_the_song_is_refused(length: int) -> None:
    model = BandSplitRotator(**TINY | {"match_input_audio_length": False})
    audio = torch.randn(1, length)
    if model(audio).shape[-1] > length:
        with pytest.raises(ValueError, match=rf"raw_audio has {length} samples.*pass at least 33 samples, or build"):
            model(audio, audio)
    else:
        assert model(audio, audio).isfinite()


@pytest.mark.parametrize("value", [3, "hann", None, [1]])
@pytest.mark.parametrize("name", ["stft_window_fn", "multi_stft_window_fn"])
def test_windows_that_are_no_functions_are_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name}=.* is not a function: pass one, for example torch.hann_window"):
        BandSplitRotator(**TINY | {name: value})


@pytest.mark.parametrize("sample_rate", [math.inf, 1e300, 10**400, 1e-300, "44100", True])
def test_sample_rates_that_no_audio_has_are_refused_whatever_the_layout(sample_rate: object) -> None:
    with pytest.raises((TypeError, ValueError), match="sample_rate must be"):
        BandSplitRotator(**TINY | {"sample_rate": sample_rate})


def test_an_infinite_sample_rate_is_said_to_be_infinite() -> None:
    with pytest.raises(ValueError, match="sample_rate must be positive and finite, but is inf"):
        BandSplitRotator(**TINY | {"sample_rate": math.inf})
