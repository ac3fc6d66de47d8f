"""The model stage by stage against loops, and what a caller of `forward` is promised."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.kernels.seam import KERNELS, Where, reference

LAYOUTS: dict[str, dict[str, Any]] = {
    "side by side": {},
    "overlapping": {"overlapping": True},
    "freq_range": {"freq_range": (3, 20), "freqs_per_bands": (2, 3, 5, 7)},
    "overlapping with freq_range": {"overlapping": True, "freq_range": (3, -1)},
    "one band": {"freqs_per_bands": (33,)},
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
each_channel_count = pytest.mark.parametrize("stereo", [False, True], ids=["mono", "stereo"])

Build = Callable[..., BandSplitRotator]


def spectrum_of(model: BandSplitRotator, length: int = 150) -> Tensor:
    return model.stft.forward(torch.randn(2, model.audio_channels, length))


def set_masks(model: BandSplitRotator, masks: list[list[Tensor]]) -> None:
    """Let each mask estimator return `masks[stem][band]`, `(f, s, c)`, whatever it is given."""
    with torch.no_grad():
        for estimator, of_bands in zip(model.mask_estimators, masks, strict=True):
            for net, mask in zip(estimator.to_freqs, of_bands, strict=True):  # type: ignore[arg-type, union-attr]
                last = net[0][-1]
                last.weight.zero_()
                # The sigmoid of 40 is 1 in float32.
                last.bias.copy_(torch.cat((mask.flatten(), torch.full((mask.numel(),), 40.0))))


def let_pass(model: BandSplitRotator) -> None:
    """Let every mask be 1."""
    shape = (model.audio_channels, 2)
    one = [torch.tensor((1.0, 0.0)).expand(int(width), *shape) for width in model.mask_filter_bank.sum(1)]
    set_masks(model, [one] * model.num_stems)


# Stages


@each_layout
@each_channel_count
def test_gather_lines_up_the_bins_of_every_band(layout: Any, stereo: bool, tiny_model: Build) -> None:
    model = tiny_model(stereo=stereo, **layout)
    spectrum, mask = spectrum_of(model), model.mask_filter_bank
    columns = [
        spectrum[:, s, f, :, c]
        for band in range(len(mask))
        for f in range(33)
        if mask[band, f]
        for s in range(model.audio_channels)
        for c in range(2)
    ]
    assert torch.equal(model.gather_bands(spectrum), torch.stack(columns, dim=-1))


@st.composite
def overlapping_layouts(draw: st.DrawFn) -> Tensor:
    """Draw any layout of 9 bins without an empty band or an uncovered bin."""
    num_bands = draw(st.integers(1, 5))
    rows = [[draw(st.booleans()) for _ in range(9)] for _ in range(num_bands)]
    for row in rows:
        row[draw(st.integers(0, 8))] = True
    for f in range(9):
        rows[draw(st.integers(0, num_bands - 1))][f] = True
    return torch.tensor(rows)


@settings(max_examples=40)
@given(overlapping_layouts(), st.booleans())
def test_mask_of_a_bin_is_the_mean_of_the_masks_of_its_bands(tiny_model: Build, layout: Tensor, stereo: bool) -> None:
    model = tiny_model(
        stereo=stereo, mask_filter_bank=layout, stft_n_fft=16, stft_win_length=16, stft_hop_length=4, dim_freqs_in=9
    )
    band_masks = torch.randn(2, 3, 4, int(layout.sum()), model.audio_channels, 2)
    expected = torch.zeros(2, 3, 4, 9, model.audio_channels, 2)
    for f in range(9):
        columns = [i for i, (_band, bin_) in enumerate(layout.nonzero().tolist()) if bin_ == f]
        expected[:, :, :, f] = sum(band_masks[:, :, :, i] for i in columns) / len(columns)
    torch.testing.assert_close(model.average_overlaps(band_masks), expected)


@settings(max_examples=40)
@given(overlapping_layouts())
def test_bands_are_gathered_and_averaged_by_runs_of_bins_as_by_single_bins(tiny_model: Build, layout: Tensor) -> None:
    model = tiny_model(mask_filter_bank=layout, stft_n_fft=16, stft_win_length=16, stft_hop_length=4, dim_freqs_in=9)
    spectrum = torch.randn(2, 1, 9, 4, 2, requires_grad=True)
    band_masks = torch.randn(2, 3, 4, int(layout.sum()), 1, 2, requires_grad=True)
    results: list[tuple[Tensor, ...]] = []
    for way in (nullcontext, reference):
        with way():
            bands, mask = model.gather_bands(spectrum), model.average_overlaps(band_masks)
        loss = bands.square().sum() + mask.square().sum()
        results.append((bands, mask, *torch.autograd.grad(loss, (spectrum, band_masks))))
    torch.testing.assert_close(*results)


@settings(max_examples=20)
@given(overlapping_layouts(), st.integers(1, 60))
def test_masks_of_one_return_the_input_for_every_layout(tiny_model: Build, layout: Tensor, length: int) -> None:
    model = tiny_model(
        mask_filter_bank=layout,
        zero_dc=False,
        stft_n_fft=16,
        stft_win_length=16,
        stft_hop_length=4,
        dim_freqs_in=9,
    )
    let_pass(model)
    audio = torch.randn(1, 1, length)
    torch.testing.assert_close(model(audio)[:, 0], audio, rtol=0, atol=1e-5)


@each_layout
def test_bins_of_no_band_get_mask_zero(layout: Any, tiny_model: Build) -> None:
    model = tiny_model(**layout)
    mask = model.average_overlaps(torch.ones(1, 1, 2, int(model.mask_filter_bank.sum()), 1, 2))
    in_a_band = model.mask_filter_bank.any(0)
    assert torch.equal(mask[0, 0, 0, :, 0, 0], in_a_band.float())


@each_layout
@each_channel_count
@pytest.mark.parametrize("zero_dc", [False, True])
def test_known_masks_multiply_the_spectrum_as_complex_numbers(
    layout: Any, stereo: bool, zero_dc: bool, tiny_model: Build
) -> None:
    model = tiny_model(stereo=stereo, num_stems=2, zero_dc=zero_dc, **layout)
    bank, channels = model.mask_filter_bank, model.audio_channels
    masks = [[torch.randn(int(width), channels, 2) for width in bank.sum(1)] for _stem in range(2)]
    set_masks(model, masks)
    spectrum = spectrum_of(model)
    expected = torch.zeros(2, 2, *spectrum.shape[1:])
    for b, n, s, f in product(range(2), range(2), range(channels), range(33)):
        of_bin = [
            complex(*masks[n][band][int(bank[band, :f].sum()), s].tolist())
            for band in range(len(bank))
            if bank[band, f]
        ]
        if not of_bin or (zero_dc and f == 0):
            continue
        factor = sum(of_bin) / len(of_bin)
        for t, (re, im) in enumerate(spectrum[b, s, f].tolist()):
            value = complex(re, im) * factor
            expected[b, n, s, f, t] = torch.tensor((value.real, value.imag))
    torch.testing.assert_close(model.mask_spectrum(spectrum), expected, rtol=1e-4, atol=1e-4)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"depth": 3, "time_transformer_depth": 2, "freq_transformer_depth": 3},
    "skip": {"depth": 3, "skip_connection": True},
    "linear": {"linear_transformer_depth": 2},
    "polar": {"use_pope": True},
    "streams": {"num_residual_streams": 3},
    "constrained streams": {"num_residual_streams": 2, "mc_hyper_conn_sinkhorn_iters": 2},
    "fracs": {"num_residual_fracs": 3},
    "value residual": {"depth": 3, "use_value_residual_learning": True},
    "everything": {
        "depth": 3,
        "skip_connection": True,
        "linear_transformer_depth": 1,
        "num_residual_streams": 3,
        "use_value_residual_learning": True,
        "learned_value_residual_mix": "swapped",
        "norm_output": True,
    },
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def naive_transform(model: BandSplitRotator, tokens: Tensor, options: dict[str, Any]) -> Tensor:
    """Hand each transformer as few sequences at a time as it takes: one, or one for each stream."""
    streams = options.get("num_residual_streams", 1)
    x = torch.stack([tokens] * streams, dim=1)  # b, stream, t, f, d
    first: dict[Any, Any] = {}
    outputs: list[Tensor] = []
    for group in model.layers:
        transformers = list(group)  # type: ignore[arg-type]
        for name in ("linear", "time", "frequency")[-len(transformers) :]:
            transformer = transformers.pop(0)
            if name == "time" and options.get("skip_connection"):
                x = torch.stack([x, *outputs]).sum(0)
            out = torch.zeros_like(x)
            lines = {"linear": 1, "time": x.shape[3], "frequency": x.shape[2]}[name]
            for b in range(x.shape[0]):
                # As upstream packs them: what mixes as streams are neighbours in the order stream, then line.
                order = list(product(range(streams), range(lines)))
                for start in range(0, len(order), streams):
                    places: list[Any] = [
                        {"linear": (b, s), "time": (b, s, slice(None), i), "frequency": (b, s, i)}[name]
                        for s, i in order[start : start + streams]
                    ]
                    sequences = torch.stack([x[place].reshape(-1, x.shape[-1]) for place in places])
                    results, values = transformer(sequences, first.get((name, b, start)))
                    first.setdefault((name, b, start), values)
                    for place, result in zip(places, results, strict=True):
                        out[place] = result.view_as(out[place])
            x = out
        outputs.append(x)
    x = x.sum(1)
    gamma = dict(model.named_parameters()).get("final_norm.gamma")
    return x if gamma is None else x / x.norm(dim=-1, keepdim=True) * x.shape[-1] ** 0.5 * gamma


@each_option
@torch.no_grad()
def test_transform_runs_along_each_axis_in_turn(
    options: Any, tiny_model: Build, randomise: Callable[[nn.Module], None]
) -> None:
    model = tiny_model(**options)
    randomise(model)
    tokens = torch.randn(2, 4, 3, 12)
    torch.testing.assert_close(model.transform(tokens), naive_transform(model, tokens, options), rtol=1e-4, atol=1e-4)


@each_option
@torch.no_grad()
def test_items_of_a_batch_do_not_touch_each_other(options: Any, tiny_model: Build) -> None:
    model, audio = tiny_model(**options), torch.randn(3, 1, 100)
    together = model(audio)
    for item in range(3):
        torch.testing.assert_close(model(audio[item : item + 1])[0], together[item], rtol=1e-4, atol=1e-5)


@each_layout
def test_mask_spectrum_is_its_stages_in_order(layout: Any, tiny_model: Build) -> None:
    model = tiny_model(num_stems=2, **layout)
    spectrum = spectrum_of(model)
    tokens = model.split_bands(model.gather_bands(spectrum))
    assert tokens.shape == (2, spectrum.shape[3], len(model.mask_filter_bank), 12)
    torch.testing.assert_close(tokens, model.band_split(model.gather_bands(spectrum)))
    features = model.transform(tokens)
    masks = model.estimate_masks(features, [0, 1])
    estimated = torch.stack([estimator(features) for estimator in model.mask_estimators], dim=1)
    torch.testing.assert_close(masks.flatten(3), estimated)
    expected = model.apply_mask(spectrum, model.average_overlaps(masks))
    actual = model.mask_spectrum(spectrum)
    assert actual.shape == (2, 2, *spectrum.shape[1:])
    assert not actual.is_complex()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(model.mask_spectrum(spectrum, [1]), expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_spectrum_is_left_as_it_was(tiny_model: Build) -> None:
    model = tiny_model()
    spectrum = spectrum_of(model)
    before = spectrum.clone()
    model.mask_spectrum(spectrum)
    assert torch.equal(spectrum, before)


@pytest.mark.parametrize("use_torch_checkpoint", [False, True])
def test_model_with_shared_products_and_whole_batches_computes_the_same(
    use_torch_checkpoint: bool, tiny_model: Build, as_on_a_gpu: Callable[[], AbstractContextManager[list[str]]]
) -> None:
    """What a GPU takes: no blocks of sequences, and one product for all stems and all bands of one width."""
    model = tiny_model(num_stems=3, freqs_per_bands=(3, 3, 6, 6, 3, 12), use_torch_checkpoint=use_torch_checkpoint)
    audio, target = torch.randn(2, 1, 100), torch.randn(2, 3, 1, 100)
    results = []
    for way in (reference, as_on_a_gpu):
        with way() as ran:
            model.zero_grad()
            loss = model(audio, target, active_stem_ids=[2, 0])
            loss.backward()
            grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            results.append((model(audio, active_stem_ids=[2, 0]), loss, grads))
    assert ran is not None
    assert set(ran) >= {"by_blocks", "split_by_groups", "masks_by_groups"}
    assert set(ran) <= {name for name, kernel in KERNELS.items() if Where.DEVICE in kernel.where}
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
    # Heads that are not active have no gradient either way.
    assert results[1][2].keys() == results[0][2].keys()


# Audio in, audio out


@each_layout
@each_channel_count
@pytest.mark.parametrize("length", [1, 20, 64, 161])
def test_masks_of_one_return_the_input_within_the_range_of_bins(
    layout: Any, stereo: bool, length: int, tiny_model: Build
) -> None:
    model = tiny_model(stereo=stereo, num_stems=2, zero_dc=False, **layout)
    let_pass(model)
    audio = torch.randn(2, model.audio_channels, length)
    low, high = layout.get("freq_range", (0, -1))
    spectrum = model.stft.forward(audio)
    spectrum[..., :low, :, :] = 0
    spectrum[..., high if high != -1 else 33 :, :, :] = 0
    expected = audio if "freq_range" not in layout else model.stft.inverse(spectrum, length)
    out = model(audio)
    assert out.shape == (2, 2, model.audio_channels, length)
    for stem in range(2):
        torch.testing.assert_close(out[:, stem], expected, rtol=0, atol=1e-5)


def test_zero_dc_takes_out_the_lowest_bin_and_nothing_else(tiny_model: Build) -> None:
    model, audio = tiny_model(zero_dc=True), torch.randn(2, 1, 161)
    let_pass(model)
    spectrum = model.stft.forward(audio)
    spectrum[..., 0, :, :] = 0
    torch.testing.assert_close(model(audio)[:, 0], model.stft.inverse(spectrum, 161), rtol=0, atol=1e-5)


def test_mono_audio_may_leave_out_its_channel(tiny_model: Build) -> None:
    model, audio = tiny_model(num_stems=2), torch.randn(3, 1, 90)
    out = model(audio[:, 0])
    assert out.shape == (3, 2, 1, 90)
    assert torch.equal(out, model(audio))


@pytest.mark.parametrize("num_stems", [1, 3])
@each_channel_count
def test_output_always_has_four_axes(num_stems: int, stereo: bool, tiny_model: Build) -> None:
    channels = 1 + stereo
    out = tiny_model(num_stems=num_stems, stereo=stereo)(torch.randn(2, channels, 90))
    assert out.shape == (2, num_stems, channels, 90)
    assert out.dtype == torch.float32


@pytest.mark.parametrize("length", [1, 2, 15, 16, 31, 32, 33, 63, 64])
@each_layout
def test_audio_shorter_than_a_frame_is_separated(length: int, layout: Any, tiny_model: Build) -> None:
    model, audio = tiny_model(**layout), torch.randn(2, 1, length)
    out = model(audio)
    assert out.shape == (2, 1, 1, length)
    assert out.isfinite().all()
    assert model(audio, torch.randn(2, 1, 1, length)).isfinite()


@pytest.mark.parametrize(("length", "expected"), [(160, 160), (161, 160), (175, 160), (5, 32)])
def test_length_may_be_left_to_the_frames(length: int, expected: int, tiny_model: Build) -> None:
    model, audio = tiny_model(match_input_audio_length=False, zero_dc=False), torch.randn(2, 1, length)
    let_pass(model)
    out = model(audio)
    assert out.shape == (2, 1, 1, expected)
    common = min(length, expected)
    torch.testing.assert_close(out[:, 0, :, :common], audio[..., :common], rtol=0, atol=1e-5)


def test_silence_stays_silence(tiny_model: Build) -> None:
    assert tiny_model()(torch.zeros(1, 1, 100)).eq(0).all()


def test_same_seed_same_model_same_output(tiny_model: Build) -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(4)
        model = tiny_model(num_residual_streams=3, mc_hyper_conn_sinkhorn_iters=2, use_value_residual_learning=True)
        outputs.append(model(torch.randn(2, 1, 100)))
    assert torch.equal(*outputs)


def test_training_steps_are_reproducible_to_the_last_bit(tiny_model: Build) -> None:
    grads = []
    for _ in range(2):
        torch.manual_seed(4)
        model = tiny_model(attn_dropout=0.2, ff_dropout=0.2, overlapping=True)
        model(torch.randn(2, 1, 100), torch.randn(2, 1, 1, 100)).backward()
        grads.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert all(map(torch.equal, *grads))


# Stems, targets and losses


@pytest.mark.parametrize("stem_ids", [[0], [2], [2, 0], [0, 1, 2], (1, 2), range(2), torch.tensor([1]).numpy()])
def test_active_stems_come_out_in_the_order_asked_for(stem_ids: Any, tiny_model: Build) -> None:
    model, audio = tiny_model(num_stems=3), torch.randn(2, 1, 100)
    everything = model(audio)
    out = model(audio, active_stem_ids=stem_ids)
    torch.testing.assert_close(out, everything[:, list(stem_ids)], rtol=1e-4, atol=1e-6)


def test_only_the_heads_of_active_stems_run_and_learn(tiny_model: Build) -> None:
    model, audio, target = tiny_model(num_stems=3), torch.randn(2, 1, 100), torch.randn(2, 3, 1, 100)
    ran: list[int] = []
    for stem, estimator in enumerate(model.mask_estimators):
        estimator.register_forward_hook(lambda *_, stem=stem: ran.append(stem))
    model(audio, target, active_stem_ids=[2, 0]).backward()
    assert ran == [2, 0]
    learned = [any(p.grad is not None for p in estimator.parameters()) for estimator in model.mask_estimators]
    assert learned == [True, False, True]


def test_active_stems_are_supervised_by_their_own_targets(tiny_model: Build) -> None:
    model, audio = tiny_model(num_stems=3), torch.randn(2, 1, 100)
    target = model(audio).detach()
    assert model(audio, target, active_stem_ids=[2, 0]) < 1e-3
    assert model(audio, target.flip(1), active_stem_ids=[2, 0]) > 1e-2


def test_loss_compares_the_output_with_the_target(tiny_model: Build) -> None:
    model, audio, target = tiny_model(num_stems=2), torch.randn(2, 1, 130), torch.randn(2, 2, 1, 130)
    estimate = model(audio)
    spectra = 0.0
    for window_size in (128, 64, 32):
        window = torch.hann_window(window_size)
        estimated, true = (
            torch.stft(t.reshape(4, 130), max(window_size, 64), 20, window_size, window, return_complex=True)
            for t in (estimate, target)
        )
        spectra = spectra + (estimated - true).abs().mean()
    waveform = (estimate - target).abs().mean()
    loss, terms = model(audio, target, return_loss_breakdown=True)
    torch.testing.assert_close((loss, terms), (waveform + spectra, (waveform, spectra)))
    assert torch.equal(model(audio, target), loss)


def test_weight_of_the_spectral_term_counts_once(tiny_model: Build) -> None:
    model = tiny_model(multi_stft_resolution_loss_weight=0.25)
    loss, (waveform, spectral) = model(torch.randn(1, 90), torch.randn(1, 1, 1, 90), return_loss_breakdown=True)
    torch.testing.assert_close(loss, waveform + 0.25 * spectral)
    assert spectral > 0.1


@pytest.mark.parametrize(
    ("stereo", "shape"),
    [
        (False, (2, 90)),
        (False, (2, 1, 90)),
        (False, (2, 1, 1, 90)),
        (True, (2, 2, 90)),
        (True, (2, 1, 2, 90)),
        (False, (2, 1, 1, 99)),
        (False, (2, 99)),
    ],
)
def test_target_shapes_of_one_stem(stereo: bool, shape: tuple[int, ...], tiny_model: Build) -> None:
    model, audio, target = tiny_model(stereo=stereo), torch.randn(2, 1 + stereo, 90), torch.randn(shape)
    expected = model(audio, target[..., :90].reshape(2, 1, 1 + stereo, 90))
    torch.testing.assert_close(model(audio, target), expected)


def test_return_loss_breakdown_without_target_returns_audio(tiny_model: Build) -> None:
    assert tiny_model()(torch.randn(1, 90), return_loss_breakdown=True).shape == (1, 1, 1, 90)


def test_target_of_full_length_fits_an_output_cut_to_whole_hops(tiny_model: Build) -> None:
    model = tiny_model(match_input_audio_length=False)
    audio, target = torch.randn(1, 1, 175), torch.randn(1, 1, 1, 175)
    estimate = model(audio)
    _, (waveform, _) = model(audio, target, return_loss_breakdown=True)
    torch.testing.assert_close(waveform, (estimate - target[..., :160]).abs().mean())
