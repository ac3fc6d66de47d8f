"""Losses by name: each against its formula, several with weights, and the model's own."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from hunterFormsBS.training.losses import L1_SNR, NAMES, Losses

LENGTH = 8192


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a mixture, (b, s, t), and estimates and stems, (b, n, s, t)."""
    torch.manual_seed(0)
    stems = torch.randn(2, 3, 2, LENGTH) * 0.1
    return stems.sum(1), (stems + 0.03 * torch.randn_like(stems)).requires_grad_(), stems


def value(name: str, **settings: Any) -> float:
    mixture, estimates, stems = example()
    compute = Losses({name: 1.0}, sample_rate=44100, **settings)
    total, terms = compute(nn.Identity(), mixture, estimates, stems)
    total.backward()
    assert estimates.grad is not None
    assert estimates.grad.isfinite().all()
    assert estimates.grad.abs().sum() > 0
    assert list(terms) == [name]
    return float(total.detach())


def errors() -> np.ndarray:
    _, estimates, stems = example()
    difference: np.ndarray = (estimates.detach() - stems).double().numpy()
    return difference


def test_differences_of_samples_are_their_formulas() -> None:
    assert value("l1_loss") == pytest.approx(np.abs(errors()).mean(), rel=1e-5)
    assert value("mse_loss") == pytest.approx((errors() ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("coarse", [False, True])
def test_the_masked_loss_leaves_out_what_is_above_the_quantile_of_each_stem(quantile: float, coarse: bool) -> None:
    squares = (errors() ** 2).swapaxes(0, 1)
    rows = squares.mean((2, 3)) if coarse else squares.reshape(3, -1)
    kept = rows * (rows < np.quantile(rows, quantile, axis=1, keepdims=True))
    assert value("masked_loss", quantile=quantile, coarse=coarse) == pytest.approx(kept.mean(), rel=1e-4)


@pytest.mark.parametrize("coarse", [False, True])
def test_losses_of_spectra_are_their_formulas(coarse: bool) -> None:
    import librosa

    spectra = librosa.stft(errors(), n_fft=4096, hop_length=1024, window="boxcar", pad_mode="reflect") / math.sqrt(4096)
    squares = np.stack([spectra.real, spectra.imag], -1) ** 2  # (b, n, s, bin, frame, 2)
    means = squares.reshape(2, 3, -1).mean(-1)
    assert value("spec_rmse_loss") == pytest.approx(np.sqrt(means + 1e-8).mean(), rel=1e-4)
    rows = (squares.mean((3, 4)) if coarse else squares).reshape(2, -1)
    kept = rows * (rows < np.quantile(rows, 0.95, axis=1, keepdims=True))
    assert value("spec_masked_loss", coarse=coarse) == pytest.approx(kept.mean(), rel=1e-3)


def test_the_multi_resolution_loss_is_auraloss_s() -> None:
    import auraloss

    sizes = {"fft_sizes": [512], "hop_sizes": [128], "win_lengths": [512]}
    _, estimates, stems = example()
    reference = auraloss.freq.MultiResolutionSTFTLoss(**sizes)(estimates.view(2, 6, -1), stems.view(2, 6, -1))
    assert value("multistft_loss", multi_stft=sizes) == pytest.approx(float(reference.detach()), rel=1e-5)


class Compare(nn.Module):
    """Stands for losses of packages that have no build for every PyTorch: notes how it was made, and sums its input."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.made.append(keywords)

    def forward(self, *audio: torch.Tensor) -> torch.Tensor:
        return torch.stack([(index + 1) * each.mean() for index, each in enumerate(audio)]).sum()


@pytest.mark.parametrize("name", [name for name in NAMES if "snr" in name])
def test_losses_of_l1_snr_are_those_of_torch_l1_snr(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_l1_snr", SimpleNamespace(**{L1_SNR[name]: Compare}))
    monkeypatch.setattr(Compare, "made", [])
    _, estimates, stems = example()
    assert value(name) == pytest.approx(float((estimates.mean() + 2 * stems.mean()).detach()), rel=1e-4)
    assert Compare.made == [{"name": name}]


def test_log_wmse_gets_the_mixture_and_stems_with_channels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class LogWMSELoss:
        """Takes what torch-log-wmse 1 takes: audio channels before stems."""

        def __init__(self, *, sample_rate: int) -> None:
            assert sample_rate == 44100

        def __call__(self, mixture: torch.Tensor, estimates: torch.Tensor, stems: torch.Tensor) -> torch.Tensor:
            assert mixture.shape == (2, 2, LENGTH)
            assert estimates.shape == stems.shape == (2, 2, 3, LENGTH)
            torch.testing.assert_close(stems.sum(2), mixture)
            return (estimates - stems).square().mean()

    monkeypatch.setitem(sys.modules, "torch_log_wmse", SimpleNamespace(LogWMSELoss=LogWMSELoss))
    assert value("log_wmse_loss") == pytest.approx((errors() ** 2).mean(), rel=1e-4)


def test_several_losses_are_summed_with_their_weights() -> None:
    mixture, estimates, stems = example()
    compute = Losses({"l1_loss": 0.5, "mse_loss": 3.0}, sample_rate=44100)
    total, terms = compute(nn.Identity(), mixture, estimates, stems)
    assert float(total.detach()) == pytest.approx(0.5 * value("l1_loss") + 3 * value("mse_loss"), rel=1e-6)
    assert float(terms["mse_loss"].detach()) == pytest.approx(value("mse_loss"), rel=1e-6)


def test_the_model_s_own_loss_is_what_it_returns(tiny_model: Callable[..., nn.Module]) -> None:
    model = tiny_model(num_stems=2, stereo=True)
    torch.manual_seed(0)
    stems = torch.randn(1, 2, 2, 400)
    mixture = stems.sum(1)
    compute = Losses({"model": 2.0}, sample_rate=44100)
    total, _ = compute(model, mixture, model(mixture), stems)
    torch.testing.assert_close(total, 2 * model(mixture, stems))


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="losses has 'l2_loss', which is unknown: choose from model, l1_loss"):
        Losses({"l2_loss": 1.0}, sample_rate=44100)


def test_a_loss_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "auraloss.freq", None)
    with pytest.raises(ImportError, match=r"losses.multistft_loss needs more packages: .* -m pip install"):
        Losses({"multistft_loss": 1.0}, sample_rate=44100)
