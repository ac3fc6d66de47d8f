"""Band-wise layers against loops over bands, and the loss against two short-time Fourier transforms."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hunterFormsBS import bandSplit
from hunterFormsBS.bandSplit import MLP, BandSplit, MaskEstimator, lossComputation
from hunterFormsBS.theTypes import ParametersComputeLoss

WIDTHS = (4, 2, 6)

# BandSplit


def test_band_split_norms_and_projects_each_band_by_itself(randomise: Callable[[nn.Module], None]) -> None:
    block, x = BandSplit(5, WIDTHS), torch.randn(2, 3, 12)
    randomise(block)
    weights = dict(block.named_parameters())
    out = block(x)
    assert out.shape == (2, 3, 3, 5)
    start = 0
    for band, width in enumerate(WIDTHS):
        part = x[..., start : start + width]
        normed = part / part.norm(dim=-1, keepdim=True) * width**0.5 * weights[f"to_features.{band}.0.gamma"]
        expected = normed @ weights[f"to_features.{band}.1.weight"].T + weights[f"to_features.{band}.1.bias"]
        torch.testing.assert_close(out[:, :, band], expected)
        start += width


def test_band_split_has_upstream_keys() -> None:
    assert {name: tuple(tensor.shape) for name, tensor in BandSplit(5, (4, 2)).state_dict().items()} == {
        "to_features.0.0.gamma": (4,),
        "to_features.0.1.weight": (5, 4),
        "to_features.0.1.bias": (5,),
        "to_features.1.0.gamma": (2,),
        "to_features.1.1.weight": (5, 2),
        "to_features.1.1.bias": (5,),
    }


def test_digital_silence_gives_finite_tokens() -> None:
    assert BandSplit(5, WIDTHS)(torch.zeros(1, 2, 12)).isfinite().all()


# MLP and MaskEstimator


@pytest.mark.parametrize(("depth", "widths"), [(1, [3, 7, 2]), (2, [3, 7, 7, 2]), (3, [3, 7, 7, 7, 2])])
def test_mlp_has_tanh_between_linear_layers_and_nowhere_else(depth: int, widths: list[int]) -> None:
    mlp, x = MLP(3, 2, dim_hidden=7, depth=depth), torch.randn(4, 3)
    linears = list(mlp)[::2]
    assert [linear.weight.shape for linear in linears] == [(b, a) for a, b in pairwise(widths)]
    expected = x
    for index, linear in enumerate(linears):
        expected = expected @ linear.weight.T + linear.bias
        expected = expected.tanh() if index < depth else expected
    torch.testing.assert_close(mlp(x), expected)


def test_mlp_has_one_hidden_layer_by_default() -> None:
    assert list(MLP(3, 2, dim_hidden=7).state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("depth", [1, 2])
def test_mask_estimator_gates_the_first_half_by_the_second(depth: int) -> None:
    block, x = MaskEstimator(5, WIDTHS, mask_estimator_depth=depth, mlp_expansion_factor=3), torch.randn(2, 3, 3, 5)
    weights, parts = dict(block.named_parameters()), []
    for band, width in enumerate(WIDTHS):
        hidden = x[:, :, band]
        for layer in range(depth + 1):
            prefix = f"to_freqs.{band}.0.{2 * layer}."
            hidden = hidden @ weights[prefix + "weight"].T + weights[prefix + "bias"]
            hidden = hidden.tanh() if layer < depth else hidden
        parts.append(hidden[..., :width] / (1 + torch.exp(-hidden[..., width:])))
    torch.testing.assert_close(block(x), torch.cat(parts, -1))


def test_mask_estimator_has_upstream_keys() -> None:
    block = MaskEstimator(5, (4, 2), mask_estimator_depth=2, mlp_expansion_factor=3)
    expected: dict[str, tuple[int, ...]] = {}
    for band, width in enumerate((4, 2)):
        for layer, shape in {0: (15, 5), 2: (15, 15), 4: (2 * width, 15)}.items():
            expected[f"to_freqs.{band}.0.{layer}.weight"] = shape
            expected[f"to_freqs.{band}.0.{layer}.bias"] = shape[:1]
    assert {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} == expected


def test_mask_estimator_is_four_times_as_wide_by_default() -> None:
    assert MaskEstimator(5, (4,)).to_freqs[0][0][0].weight.shape == (20, 5)  # type: ignore[index, union-attr]


# Products shared among bands of like width, for devices where launches are dear

UNSORTED = (4, 4, 2, 10, 4, 6, 6, 26, 2, 6)


@pytest.fixture
def _launches_are_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandSplit, "is_eager_on_cpu", lambda _x: False)


def gradients(out: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    leaves = [x, *module.parameters()]
    return list(torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), leaves))


def test_band_split_with_shared_products_computes_the_same(
    randomise: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x = BandSplit(5, UNSORTED), torch.randn(2, 3, sum(UNSORTED), requires_grad=True)
    randomise(block)
    expected = block(x)
    with monkeypatch.context() as patch:
        patch.setattr(bandSplit, "is_eager_on_cpu", lambda _x: False)
        patch.setattr(nn.Linear, "forward", lambda *_: pytest.fail("a band was computed by itself"))
        actual = block(x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, block, x), gradients(expected, block, x))


@pytest.mark.parametrize("num_stems", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_mask_estimators_compute_the_same_together(
    num_stems: int, depth: int, randomise: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimators = nn.ModuleList(MaskEstimator(5, UNSORTED, mask_estimator_depth=depth) for _ in range(num_stems))
    randomise(estimators)
    x = torch.randn(2, 3, len(UNSORTED), 5, requires_grad=True)
    expected = torch.stack([estimator(x) for estimator in estimators], dim=1)
    expected_gradients = gradients(expected, estimators, x)
    for launches_are_dear in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(bandSplit, "is_eager_on_cpu", lambda _x, dear=launches_are_dear: not dear)
            if launches_are_dear:
                patch.setattr(bandSplit, "through", lambda *_: pytest.fail("a band was computed by itself"))
            actual = bandSplit.masks_of_stems(list(estimators), x)  # type: ignore[arg-type]
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(actual, estimators, x), expected_gradients)


@pytest.mark.usefixtures("_launches_are_dear")
def test_hook_on_a_band_is_called_also_where_products_could_be_shared() -> None:
    block, estimators, x = BandSplit(5, WIDTHS), [MaskEstimator(5, WIDTHS) for _ in range(2)], torch.randn(2, 3, 12)
    hooked, seen = (block.to_features[1][1], estimators[1].to_freqs[2][0][0]), []  # type: ignore[index]
    for module in hooked:
        module.register_forward_hook(lambda module, *_: seen.append(module))
    bandSplit.masks_of_stems(estimators, block(x))
    assert tuple(seen) == hooked


@pytest.mark.usefixtures("_launches_are_dear")
def test_replaced_layers_take_part_also_where_products_could_be_shared() -> None:
    block, estimator, x = BandSplit(5, WIDTHS), MaskEstimator(5, WIDTHS), torch.randn(2, 3, 12)
    block.to_features[1][1] = nn.Sequential(block.to_features[1][1], nn.Threshold(1e9, 7.0))  # type: ignore[index, operator]
    tokens = block(x)
    assert tokens[:, :, 1].eq(7).all()
    estimator.to_freqs[1] = nn.Sequential(estimator.to_freqs[1], nn.Threshold(1e9, 3.0))
    masks = bandSplit.masks_of_stems([estimator, estimator], tokens)
    assert masks[..., WIDTHS[0] : WIDTHS[0] + WIDTHS[1]].eq(3).all()


def test_products_are_not_shared_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandSplit, "_masks_by_groups", lambda *_: pytest.fail("products were shared"))
    assert MaskEstimator(5, WIDTHS)(torch.randn(2, 3, len(WIDTHS), 5)).shape == (2, 3, sum(WIDTHS))


# lossComputation

SETTINGS: ParametersComputeLoss = {
    "stft_n_fft": 64,
    "multi_stft_hop_size": 20,
    "multi_stft_normalized": False,
    "multi_stft_resolution_loss_weight": 0.7,
    "multi_stft_resolutions_window_sizes": (128, 64, 32),
    "multi_stft_window_fn": torch.hann_window,
}


def naive_loss(estimate: Tensor, target: Tensor, settings: ParametersComputeLoss) -> tuple[Tensor, Tensor]:
    """Transform both, subtract the spectra, and average the moduli; both `(b, n, s, t)`."""
    terms = []
    for window_size in settings["multi_stft_resolutions_window_sizes"]:
        n_fft = max(window_size, settings["stft_n_fft"])
        spectra = [
            torch.stft(
                audio.reshape(-1, audio.shape[-1]),
                n_fft,
                hop_length=settings["multi_stft_hop_size"],
                win_length=window_size,
                window=settings["multi_stft_window_fn"](window_size),
                normalized=settings["multi_stft_normalized"],
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
    settings: Any = SETTINGS | changes
    estimate, target = torch.randn(2, len(stem_ids), 2, 300), torch.randn(2, 3, 2, 300)
    chosen = torch.stack([target[:, stem] for stem in stem_ids], dim=1)
    waveform_term, multi_stft_term = naive_loss(estimate, chosen, settings)
    expected = waveform_term + settings["multi_stft_resolution_loss_weight"] * multi_stft_term
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
    settings: Any = SETTINGS | changes
    estimate, target = torch.randn(2, 1, 2, 300, requires_grad=True), torch.randn(2, 1, 2, 300)
    waveform_term, multi_stft_term = naive_loss(estimate, target, settings)
    (expected,) = torch.autograd.grad(waveform_term + 0.7 * multi_stft_term, estimate)
    (actual,) = torch.autograd.grad(lossComputation(estimate, target, [0], settings), estimate)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)


def test_gradient_of_the_loss_is_the_same_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, target = torch.randn(2, 3, 2, 300, requires_grad=True), torch.randn(2, 3, 2, 300)
    losses = [lossComputation(estimate, target, [0, 1, 2], SETTINGS)]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    losses.append(lossComputation(estimate, target, [0, 1, 2], SETTINGS))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(3 * loss, estimate)[0] for loss in losses))


def test_loss_keeps_no_spectrum_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, spectra, rfft = torch.randn(1, 1, 2, 300, requires_grad=True), [], bandSplit.rfft

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        spectrum = rfft(*args, **kwargs)
        spectra.append(weakref.ref(spectrum))
        return spectrum

    monkeypatch.setattr(bandSplit, "rfft", recorded)
    loss = lossComputation(estimate, torch.zeros(1, 1, 2, 300), [0], SETTINGS)
    gc.collect()
    assert loss.requires_grad
    assert [spectrum() for spectrum in spectra] == [None] * 2 * len(SETTINGS["multi_stft_resolutions_window_sizes"])


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
    one_window: Any = SETTINGS | {"multi_stft_resolutions_window_sizes": (128,)}
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
    estimate, target = torch.randn(1, 1, 1, 300), torch.randn(1, 1, 1, 300)
    monkeypatch.setattr(bandSplit, "rfft", None)
    settings: Any = SETTINGS | {"multi_stft_resolution_loss_weight": weight}
    torch.testing.assert_close(lossComputation(estimate, target, [0], settings), (estimate - target).abs().mean())


def test_target_receives_no_stem_of_another_order() -> None:
    target = torch.randn(1, 3, 1, 300)
    assert lossComputation(target[:, [2, 1]], target, [2, 1], SETTINGS) == 0
    assert lossComputation(target[:, [1, 2]], target, [2, 1], SETTINGS) > 0.1


# Names


def test_layouts_are_found_where_the_band_layers_are() -> None:
    assert sum(bandSplit.DEFAULT_FREQS_PER_BANDS) == 1025
    assert bandSplit.mask_filter_bank_bs_roformer_default.shape == (62, 1025)
    assert bandSplit.mask_filter_bank_mel_band_default.shape == (60, 1025)
    assert bandSplit.mask_filter_bank_non_overlapping((1, 2), 3).tolist() == [[True, False, False], [False, True, True]]
    assert bandSplit.mask_filter_bank_mel(44100, 2048, 60).equal(bandSplit.mask_filter_bank_mel_band_default)
