"""The loss against two short-time Fourier transforms."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hunterFormsBS import bandSplit
from hunterFormsBS.blocks.loss import lossComputation
from hunterFormsBS.kernels import loss as loss_kernel
from hunterFormsBS.kernels.seam import KERNELS, reference
from hunterFormsBS.operations import frames
from hunterFormsBS.theTypes import ParametersComputeLoss

SETTINGS = ParametersComputeLoss(
    stft_n_fft=64,
    multi_stft_hop_size=20,
    multi_stft_normalized=False,
    multi_stft_resolution_loss_weight=0.7,
    multi_stft_resolutions_window_sizes=(128, 64, 32),
    multi_stft_window_fn=torch.hann_window,
)


def naive_loss(estimate: Tensor, target: Tensor, settings: ParametersComputeLoss) -> tuple[Tensor, Tensor]:
    """Transform both, subtract the spectra, and average the moduli; both `(b, n, s, t)`."""
    terms = []
    for window_size in settings.multi_stft_resolutions_window_sizes:
        n_fft = max(window_size, settings.stft_n_fft)
        spectra = [
            torch.stft(
                audio.reshape(-1, audio.shape[-1]),
                n_fft,
                hop_length=settings.multi_stft_hop_size,
                win_length=window_size,
                window=settings.multi_stft_window_fn(window_size),
                normalized=settings.multi_stft_normalized,
                return_complex=True,
            )
            for audio in (estimate, target)
        ]
        difference = torch.view_as_real(spectra[0] - spectra[1])
        terms.append((difference[..., 0] ** 2 + difference[..., 1] ** 2).sqrt().mean())
    return (estimate - target).abs().mean(), sum(terms, torch.zeros(()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"multi_stft_normalized": True},
        {"multi_stft_resolutions_window_sizes": (200,)},
        {"multi_stft_resolutions_window_sizes": [16, 16]},
        {"stft_n_fft": 16},
        {"multi_stft_hop_size": 7},
        {"multi_stft_window_fn": torch.hamming_window},
        {"multi_stft_resolution_loss_weight": 0.0},
        {"multi_stft_resolution_loss_weight": 3},
    ],
    ids=lambda changes: ", ".join(changes) or "plain",
)
@pytest.mark.parametrize("stem_ids", [[0, 1, 2], [2, 0]])
def test_loss_is_the_waveform_term_plus_the_weighted_spectral_term(changes: Any, stem_ids: list[int]) -> None:
    settings = SETTINGS._replace(**changes)
    estimate, target = torch.randn(2, len(stem_ids), 2, 300), torch.randn(2, 3, 2, 300)
    chosen = torch.stack([target[:, stem] for stem in stem_ids], dim=1)
    waveform_term, multi_stft_term = naive_loss(estimate, chosen, settings)
    expected = waveform_term + settings.multi_stft_resolution_loss_weight * multi_stft_term
    loss = lossComputation(estimate, target, stem_ids, settings)
    torch.testing.assert_close(loss, expected)
    broken_down = lossComputation(estimate, target, stem_ids, settings, return_loss_breakdown=True)
    torch.testing.assert_close(broken_down, (expected, (waveform_term, multi_stft_term)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"multi_stft_normalized": True},
        {"multi_stft_resolutions_window_sizes": (65, 33), "stft_n_fft": 65},
        {"multi_stft_window_fn": torch.hamming_window},
    ],
    ids=lambda changes: ", ".join(changes) or "plain",
)
def test_gradient_of_the_loss_is_that_of_two_transforms(changes: Any) -> None:
    settings = SETTINGS._replace(**changes)
    estimate, target = torch.randn(2, 1, 2, 300, requires_grad=True), torch.randn(2, 1, 2, 300)
    waveform_term, multi_stft_term = naive_loss(estimate, target, settings)
    (expected,) = torch.autograd.grad(waveform_term + 0.7 * multi_stft_term, estimate)
    (actual,) = torch.autograd.grad(lossComputation(estimate, target, [0], settings), estimate)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("way", ["reference", "graph"])
def test_gradient_of_the_loss_is_the_same_without_its_kernel(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, target = torch.randn(2, 3, 2, 300, requires_grad=True), torch.randn(2, 3, 2, 300)
    losses = [lossComputation(estimate, target, [0, 1, 2], SETTINGS)]
    monkeypatch.setattr(KERNELS["spectral_l1_with_gradient"], "run", lambda *_: pytest.fail("the kernel ran"))
    if way == "graph":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        losses.append(lossComputation(estimate, target, [0, 1, 2], SETTINGS))
    else:
        with reference():
            losses.append(lossComputation(estimate, target, [0, 1, 2], SETTINGS))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(3 * loss, estimate)[0] for loss in losses))


def test_loss_keeps_no_spectrum_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, spectra, rfft = torch.randn(1, 1, 2, 300, requires_grad=True), [], loss_kernel.rfft

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        spectrum = rfft(*args, **kwargs)
        spectra.append(weakref.ref(spectrum))
        return spectrum

    monkeypatch.setattr(loss_kernel, "rfft", recorded)
    loss = lossComputation(estimate, torch.zeros(1, 1, 2, 300), [0], SETTINGS)
    gc.collect()
    assert loss.requires_grad
    assert [spectrum() for spectrum in spectra] == [None] * 2 * len(SETTINGS.multi_stft_resolutions_window_sizes)


def test_gradient_is_finite_where_estimate_and_target_agree() -> None:
    audio = torch.zeros(1, 1, 1, 300, requires_grad=True)
    lossComputation(audio, torch.zeros(1, 1, 1, 300), [0], SETTINGS).backward()
    assert audio.grad is not None
    assert audio.grad.eq(0).all()


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_gradient_of_the_loss_does_not_depend_on_the_scale_of_the_difference(scale: float) -> None:
    audio, silence = torch.randn(1, 1, 2, 300, requires_grad=True), torch.zeros(1, 1, 2, 300)
    (expected,) = torch.autograd.grad(lossComputation(audio, silence, [0], SETTINGS), audio)
    scaled = (audio * scale).detach().requires_grad_()
    (actual,) = torch.autograd.grad(lossComputation(scaled, silence, [0], SETTINGS), scaled)
    torch.testing.assert_close(actual, expected)


def test_gradient_of_the_loss_stays_small_where_squares_vanish() -> None:
    silence = torch.zeros(1, 1, 2, 300)
    norms = []
    for scale in (1.0, 1e-30):
        audio = (torch.randn(1, 1, 2, 300) * scale).requires_grad_()
        (gradient,) = torch.autograd.grad(lossComputation(audio, silence, [0], SETTINGS), audio)
        norms.append(float(gradient.norm()))
    assert norms[1] < 2 * norms[0]


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((2, 300), 1), ((2, 1, 300), 1), ((2, 2, 300), 2), ((2, 1, 2, 300), 2)],
    ids=["b t", "b 1 t", "b s t", "b 1 s t"],
)
def test_single_stem_target_may_leave_out_axes(shape: tuple[int, ...], channels: int) -> None:
    estimate, target = torch.randn(2, 1, channels, 300), torch.randn(shape)
    expected = lossComputation(estimate, target.reshape(2, 1, channels, 300), [0], SETTINGS)
    assert torch.equal(lossComputation(estimate, target, [0], SETTINGS), expected)


def test_longer_target_is_cut_at_its_end() -> None:
    estimate, target = torch.randn(2, 1, 2, 290), torch.randn(2, 1, 2, 300)
    expected = lossComputation(estimate, target[..., :290], [0], SETTINGS)
    assert torch.equal(lossComputation(estimate, target, [0], SETTINGS), expected)


@pytest.mark.parametrize("length", [1, 32, 33, 64, 65])
def test_audio_shorter_than_a_frame_counts_as_followed_by_silence(length: int) -> None:
    estimate, target = torch.randn(2, 1, 1, length), torch.randn(2, 1, 1, length)
    waveform_term = (estimate - target).abs().mean()
    one_window = SETTINGS._replace(multi_stft_resolutions_window_sizes=(128,))
    padding = (0, max(0, 65 - length))
    _, multi_stft_term = naive_loss(F.pad(estimate, padding), F.pad(target, padding), one_window)
    loss = lossComputation(estimate, target, [0], one_window)
    torch.testing.assert_close(loss, waveform_term + 0.7 * multi_stft_term)


def test_loss_of_half_types_is_computed_in_float32() -> None:
    estimate, target = torch.randn(2, 1, 1, 300).bfloat16(), torch.randn(2, 1, 1, 300).bfloat16()
    loss = lossComputation(estimate, target, [0], SETTINGS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, lossComputation(estimate.float(), target.float(), [0], SETTINGS))


def test_loss_under_autocast_is_computed_in_float32() -> None:
    estimate, target = torch.randn(2, 1, 1, 300), torch.randn(2, 1, 1, 300)
    with torch.autocast("cpu", torch.bfloat16):
        loss = lossComputation(estimate, target, [0], SETTINGS)
    assert torch.equal(loss, lossComputation(estimate, target, [0], SETTINGS))


def test_float64_loss_stays_float64() -> None:
    estimate, target = torch.randn(1, 1, 1, 300).double(), torch.randn(1, 1, 1, 300)
    assert lossComputation(estimate, target, [0], SETTINGS).dtype == torch.float64


@pytest.mark.parametrize("weight", [0, 0.0])
def test_weight_zero_without_breakdown_takes_no_transform(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, target = torch.randn(1, 1, 1, 300, requires_grad=True), torch.randn(1, 1, 1, 300)
    for module in (frames, loss_kernel):
        monkeypatch.setattr(module, "rfft", lambda *_: pytest.fail("a transform was taken"))
    settings = SETTINGS._replace(multi_stft_resolution_loss_weight=weight)
    torch.testing.assert_close(lossComputation(estimate, target, [0], settings), (estimate - target).abs().mean())


def test_target_receives_no_stem_of_another_order() -> None:
    target = torch.randn(1, 3, 1, 300)
    assert lossComputation(target[:, [2, 1]], target, [2, 1], SETTINGS) == 0
    assert lossComputation(target[:, [1, 2]], target, [2, 1], SETTINGS) > 0.1


def test_loss_is_found_where_the_band_layers_are() -> None:
    assert bandSplit.lossComputation is lossComputation
