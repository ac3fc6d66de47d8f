"""Fourier transforms where a device has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hunterFormsBS.blocks.loss import spectral_l1
from hunterFormsBS.blocks.spectrum import SpectralTransform
from hunterFormsBS.operations import fft
from hunterFormsBS.operations.fft import lacks_fft
from hunterFormsBS.theTypes import ParametersComputeLoss, ParametersSTFT


@pytest.mark.parametrize("macos_14", [False, True])
def test_only_mps_before_macos_14_lacks_fourier_transforms(macos_14: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: asked.append(version) or macos_14)
    assert lacks_fft(torch.device("mps")) is not macos_14
    assert asked == [(14, 0)]
    assert not lacks_fft(torch.device("cpu"))
    assert not lacks_fft(torch.device("cuda"))


def test_device_without_fourier_transforms_uses_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stft, audio = SpectralTransform(ParametersSTFT(16, 4, 16)), torch.randn(2, 40)
    expected = stft.forward(audio)
    moved: list[Tensor] = []
    original = Tensor.cpu
    monkeypatch.setattr(fft, "lacks_fft", lambda _device: True)
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: moved.append(tensor) or original(tensor))
    spectrum = stft.forward(audio)
    assert len(moved) == 1
    assert torch.equal(spectrum, expected)
    torch.testing.assert_close(stft.inverse(spectrum, 40), audio, rtol=1e-4, atol=1e-5)
    assert len(moved) == 2


def test_loss_uses_the_cpu_too_and_gradients_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, parameters = torch.randn(2, 300, requires_grad=True), ParametersComputeLoss(64, 20)
    expected = torch.autograd.grad(spectral_l1(rows, parameters), rows)
    moved: list[Tensor] = []
    original = Tensor.cpu
    monkeypatch.setattr(fft, "lacks_fft", lambda _device: True)
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: moved.append(tensor) or original(tensor))
    assert torch.equal(*expected, *torch.autograd.grad(spectral_l1(rows, parameters), rows))
    assert len(moved) == 1
