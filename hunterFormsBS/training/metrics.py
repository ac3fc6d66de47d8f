"""Metrics of separated stems.

    scores = measure(("sdr", "si_sdr"), estimates, stems, mixture, 44100)
    scores[0]["sdr"]

`sdr`, of the Music Demixing challenges, and `si_sdr` are torchmetrics'. `l1_freq`, `bleedless` and `fullness` are
defined by Music-Source-Separation-Training. `log_wmse` is torch-log-wmse's and `museval_sdr`, which takes minutes for a
song, museval's. Higher is better for all.

Axis letters: n stem, s audio channel, t sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hunterFormsBS.installation import how_to_install

Metric = Callable[[Tensor, Tensor, Tensor, int], float]
"""Takes an estimate and a true stem, `(s, t)`, the mixture, `(s, t)`, and the sample rate."""


def measure(
    names: Sequence[str], estimates: Tensor, stems: Tensor, mixture: Tensor, sample_rate: int
) -> list[dict[str, float]]:
    """Return the scores of each stem of a song, by metric.

    A silent stem has only log-WMSE, which is defined for silence.

    Parameters
    ----------
    names : sequence of str
        Of the functions below, and `museval_sdr`.
    estimates, stems : Tensor
        `(n, s, t)`.
    mixture : Tensor
        `(s, t)`.
    sample_rate : int
        Hz.

    Raises
    ------
    ImportError
        If the package of a metric is not installed.
    """
    audible = [bool(stem.any()) for stem in stems]
    scores: list[dict[str, float]] = [{} for _ in stems]
    for name in names:
        if name == "museval_sdr":
            heard = torch.tensor(audible)
            values = iter(museval_sdr(estimates[heard], stems[heard], sample_rate) if heard.any() else ())
            for score, sounds in zip(scores, audible, strict=True):
                if sounds:
                    score[name] = next(values)
            continue
        for score, estimate, stem, sounds in zip(scores, estimates, stems, audible, strict=True):
            if sounds or name == "log_wmse":
                score[name] = _BY_NAME[name](estimate, stem, mixture, sample_rate)
    return scores


def sdr(estimate: Tensor, stem: Tensor, _mixture: Tensor, _rate: int) -> float:
    """Return the energy of a stem over the energy of the error, in dB, over both channels."""
    ratio = _load("sdr")
    return float(ratio(estimate.flatten(), stem.flatten()))


def si_sdr(estimate: Tensor, stem: Tensor, _mixture: Tensor, _rate: int) -> float:
    """Return the scale-invariant SDR, in dB."""
    ratio = _load("si_sdr")
    return float(ratio(estimate.flatten(), stem.flatten()))


def l1_freq(estimate: Tensor, stem: Tensor, _mixture: Tensor, _rate: int) -> float:
    """Return 100 / (1 + 10 d), d being the mean difference of the magnitudes of spectra."""
    # Without a window, as in MSST.
    window = torch.ones(2048, device=stem.device)
    magnitudes = [torch.stft(each, 2048, 1024, window=window, return_complex=True).abs() for each in (estimate, stem)]
    return 100 / (1 + 10 * float((magnitudes[0] - magnitudes[1]).abs().mean()))


def bleedless(estimate: Tensor, stem: Tensor, _mixture: Tensor, rate: int) -> float:
    """Return 100 / (1 + d), where d is the mean excess of the estimate where it is too loud, in dB on a mel scale."""
    excess = _excess(estimate, stem, rate)
    return 100 / (1 + _mean(excess[excess > 0]))


def fullness(estimate: Tensor, stem: Tensor, _mixture: Tensor, rate: int) -> float:
    """Return 100 / (1 + d), where d is the mean deficit of the estimate where it is too quiet, in dB on a mel scale."""
    excess = _excess(estimate, stem, rate)
    return 100 / (1 + _mean(-excess[excess < 0]))


def log_wmse(estimate: Tensor, stem: Tensor, mixture: Tensor, rate: int) -> float:
    """Return the logarithmic, frequency-weighted mean squared error relative to the mixture."""
    kind = _load("log_wmse")
    # It expects audio channels before stems: one song, one stem.
    return float(kind(sample_rate=rate)(mixture[None], estimate[None, :, None], stem[None, :, None]))


def museval_sdr(estimates: Tensor, stems: Tensor, sample_rate: int) -> list[float]:
    """Return the SDR of BSS Eval version 4 of each stem, `(n, s, t)`, in dB: the median over its seconds."""
    bss_eval = _load("museval_sdr")
    references, guesses = (each.movedim(1, 2).double().cpu().numpy() for each in (stems, estimates))
    seconds = bss_eval(references, guesses, window=sample_rate, hop=sample_rate, framewise_filters=False)[0]
    return [float(np.nanmedian(each)) for each in seconds]


def _excess(estimate: Tensor, stem: Tensor, rate: int) -> Tensor:
    """Return how much louder an estimate is than the stem, in dB, by channel, mel band and frame."""
    filters: NDArray[np.float32] = _load("bleedless")(sr=rate, n_fft=4096, n_mels=512)
    bands = torch.from_numpy(filters).to(stem.device)  # pyright: ignore[reportUnknownMemberType]
    window = torch.hann_window(4096, device=stem.device)
    levels: list[Tensor] = []
    for audio in (estimate, stem):
        spectrum = torch.stft(audio.float(), 4096, 1024, window=window, pad_mode="constant", return_complex=True).abs()
        level = 20 * torch.log10((bands @ spectrum).clamp(min=1e-10))
        levels.append(level.clamp(min=float(level.max()) - 80))
    return levels[0] - levels[1]


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _load(name: str) -> Any:
    module, kind, extra = _NEEDED[name]
    try:
        return getattr(import_module(module), kind)
    # museval raises RuntimeError without ffmpeg; a torchaudio built for another PyTorch raises OSError.
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(f"the metric {name} needs more: {how_to_install(extra)} ({error})") from error


def require(names: Sequence[str]) -> None:
    """Import the packages of metrics.

    Raises
    ------
    ImportError
        If one is not installed; the message has the command that installs it.
    """
    for name in names:
        if name in _NEEDED:
            _load(name)


_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "sdr": ("torchmetrics.functional.audio", "signal_noise_ratio", "train"),
    "si_sdr": ("torchmetrics.functional.audio", "scale_invariant_signal_distortion_ratio", "train"),
    "bleedless": ("librosa.filters", "mel", "metrics"),
    "fullness": ("librosa.filters", "mel", "metrics"),
    "log_wmse": ("torch_log_wmse", "LogWMSE", "metrics"),
    "museval_sdr": ("museval.metrics", "bss_eval", "metrics"),
}
"""Package, name in it, and extra of metrics from other packages."""

_BY_NAME: Final[Mapping[str, Metric]] = {
    "sdr": sdr,
    "si_sdr": si_sdr,
    "l1_freq": l1_freq,
    "bleedless": bleedless,
    "fullness": fullness,
    "log_wmse": log_wmse,
}
