"""Metrics of validation, each against its definition written out in NumPy."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hunterFormsBS.choices import METRICS
from hunterFormsBS.training.metrics import measure

RATE = 44100


def example(stems: int = 2) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return estimates and stems, `(n, s, t)`: the first a little quieter, all with noise."""
    random = np.random.default_rng(0)
    truth = 0.1 * random.standard_normal((stems, 2, RATE)).astype(np.float32)
    estimates = truth * np.linspace(0.8, 1.3, stems, dtype=np.float32)[:, None, None]
    return estimates + 0.02 * random.standard_normal(truth.shape).astype(np.float32), truth


def scores(*names: str, estimates: NDArray[np.float32], truth: NDArray[np.float32]) -> list[dict[str, float]]:
    return measure(names, *map(torch.from_numpy, (estimates, truth, truth.sum(0))), RATE)


def sdr(estimate: NDArray[Any], stem: NDArray[Any]) -> float:
    return float(10 * np.log10(np.sum(stem**2) / np.sum((stem - estimate) ** 2)))


def si_sdr(estimate: NDArray[Any], stem: NDArray[Any]) -> float:
    return sdr(estimate, stem * np.sum(stem * estimate) / np.sum(stem**2))


def l1_freq(estimate: NDArray[Any], stem: NDArray[Any]) -> float:
    spectra = [
        np.abs(librosa.stft(each, n_fft=2048, hop_length=1024, window="boxcar", pad_mode="reflect"))
        for each in (estimate, stem)
    ]
    return float(100 / (1 + 10 * np.mean(np.abs(spectra[0] - spectra[1]))))


def excess(estimate: NDArray[Any], stem: NDArray[Any]) -> NDArray[Any]:
    bank = librosa.filters.mel(sr=RATE, n_fft=4096, n_mels=512)
    levels = [
        librosa.amplitude_to_db(bank @ np.abs(librosa.stft(each, n_fft=4096, hop_length=1024)), amin=1e-10, top_db=80)
        for each in (estimate, stem)
    ]
    return np.asarray(levels[0] - levels[1])


def bleedless(estimate: NDArray[Any], stem: NDArray[Any]) -> float:
    return float(100 / (1 + np.mean(excess(estimate, stem)[excess(estimate, stem) > 0])))


def fullness(estimate: NDArray[Any], stem: NDArray[Any]) -> float:
    return float(100 / (1 - np.mean(excess(estimate, stem)[excess(estimate, stem) < 0])))


@pytest.mark.filterwarnings("ignore:Empty filters detected:UserWarning")
@pytest.mark.parametrize("formula", [sdr, si_sdr, l1_freq, bleedless, fullness])
def test_scores_are_those_of_the_definition(formula: Any) -> None:
    estimates, truth = example()
    measured = scores(formula.__name__, estimates=estimates, truth=truth)
    for score, estimate, stem in zip(measured, estimates, truth, strict=True):
        assert score[formula.__name__] == pytest.approx(formula(estimate, stem), rel=1e-4)


def test_more_is_better_in_all_of_them() -> None:
    estimates, truth = example()
    names = ("sdr", "si_sdr", "l1_freq")
    near = scores(*names, estimates=0.5 * (estimates + truth), truth=truth)
    far = scores(*names, estimates=estimates, truth=truth)
    assert all(better[name] > worse[name] for better, worse in zip(near, far, strict=True) for name in names)


def test_a_silent_stem_has_no_ratio_of_energies() -> None:
    estimates, truth = example()
    truth[1] = 0
    first, silent = scores("sdr", "si_sdr", "l1_freq", estimates=estimates, truth=truth)
    assert math.isfinite(first["sdr"])
    assert silent == {}


def test_museval_gets_whole_songs_and_gives_the_median_of_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def bss_eval(references: NDArray[Any], guesses: NDArray[Any], **keywords: Any) -> list[NDArray[Any]]:
        seen.append((references.shape, guesses.shape, keywords))
        return [np.array([[1.0, np.nan, 3.0]] * len(references))]

    monkeypatch.setitem(sys.modules, "museval", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "museval.metrics", SimpleNamespace(bss_eval=bss_eval))
    estimates, truth = example(3)
    truth[1] = 0
    measured = scores("museval_sdr", estimates=estimates, truth=truth)
    assert measured == [{"museval_sdr": 2.0}, {}, {"museval_sdr": 2.0}]
    assert seen == [((2, RATE, 2), (2, RATE, 2), {"window": RATE, "hop": RATE, "framewise_filters": False})]


def test_log_wmse_judges_silence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[Any] = []

    class LogWMSE:
        """Takes what torch-log-wmse 1 takes: audio channels before stems."""

        def __init__(self, *, sample_rate: int) -> None:
            assert sample_rate == RATE

        def __call__(self, mixture: torch.Tensor, estimates: torch.Tensor, stems: torch.Tensor) -> torch.Tensor:
            shapes.append([tuple(each.shape) for each in (mixture, estimates, stems)])
            return torch.tensor(7.0)

    monkeypatch.setitem(sys.modules, "torch_log_wmse", SimpleNamespace(LogWMSE=LogWMSE))
    estimates, truth = example()
    truth[:] = 0
    assert scores("log_wmse", "sdr", estimates=estimates, truth=truth) == [{"log_wmse": 7.0}] * 2
    assert shapes == [[(1, 2, RATE), (1, 2, 1, RATE), (1, 2, 1, RATE)]] * 2


@pytest.mark.parametrize(("name", "module"), [("log_wmse", "torch_log_wmse"), ("museval_sdr", "museval.metrics")])
def test_a_metric_whose_package_is_missing_says_what_to_install(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    estimates, truth = example()
    assert name in METRICS
    with pytest.raises(ImportError, match=rf"the metric {name} needs more: .* -m pip install"):
        scores(name, estimates=estimates, truth=truth)
