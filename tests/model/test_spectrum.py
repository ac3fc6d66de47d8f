"""The short-time Fourier transform against its definition, and its inverse against the audio."""

from __future__ import annotations

import cmath
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hunterFormsBS.blocks.spectrum import SpectralTransform
from hunterFormsBS.operations.frames import frames_and_window, padded_for_stft
from hunterFormsBS.theTypes import ParametersComputeLoss, ParametersSTFT

DEFAULTS = ParametersSTFT(
    stft_n_fft=16,
    stft_hop_length=4,
    stft_win_length=16,
    stft_normalized=False,
    stft_window_fn=torch.hann_window,
)


def transform(**overrides: Any) -> SpectralTransform:
    return SpectralTransform(DEFAULTS._replace(**overrides))


def naive_stft(audio: list[float], n_fft: int, hop: int, window: list[float], normalized: bool) -> Tensor:
    """Sum the definition frame by frame and bin by bin, `(f, t, c)`."""
    half, margin = n_fft // 2, (n_fft - len(window)) // 2
    padded_window = [0.0] * margin + window + [0.0] * (n_fft - len(window) - margin)
    reflected = audio[half:0:-1] + audio + audio[-2 : -half - 2 : -1]
    frames: list[list[complex]] = []
    for start in range(0, len(reflected) - n_fft + 1, hop):
        samples = [reflected[start + i] * padded_window[i] for i in range(n_fft)]
        frames.append(
            [
                sum(x * cmath.exp(-2j * math.pi * f * i / n_fft) for i, x in enumerate(samples))
                / (math.sqrt(n_fft) if normalized else 1)
                for f in range(half + 1)
            ]
        )
    return torch.tensor([[[frame[f].real, frame[f].imag] for frame in frames] for f in range(half + 1)])


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"stft_normalized": True},
        {"stft_hop_length": 5},
        {"stft_win_length": 12},
        {"stft_win_length": 9, "stft_hop_length": 3},
        {"stft_n_fft": 15, "stft_win_length": 15},
        {"stft_window_fn": torch.hamming_window},
    ],
    ids=lambda case: re.sub(r" at 0x\w+", "", str(case)),
)
def test_spectrum_equals_its_definition(overrides: Any) -> None:
    audio, sizes = torch.randn(37), DEFAULTS._replace(**overrides)
    window = sizes.stft_window_fn(sizes.stft_win_length).tolist()
    expected = naive_stft(audio.tolist(), sizes.stft_n_fft, sizes.stft_hop_length, window, sizes.stft_normalized)
    torch.testing.assert_close(transform(**overrides).forward(audio[None])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("leading", [(1,), (3,), (2, 3), (2, 3, 2)])
def test_leading_axes_are_kept_in_order(leading: tuple[int, ...]) -> None:
    stft, audio = transform(), torch.randn(*leading, 40)
    spectrum = stft.forward(audio)
    assert spectrum.shape == (*leading, 9, 11, 2)
    rows = torch.stack([stft.forward(row[None])[0] for row in audio.reshape(-1, 40)])
    torch.testing.assert_close(spectrum.reshape(rows.shape), rows)
    torch.testing.assert_close(stft.inverse(spectrum, 40), audio, rtol=1e-4, atol=1e-5)


@st.composite
def settings_and_length(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    n_fft = draw(st.integers(2, 40))
    window = draw(st.integers(2, n_fft))
    hop = draw(st.integers(1, window // 2))
    sizes = {"stft_n_fft": n_fft, "stft_win_length": window, "stft_hop_length": hop}
    return sizes | {"stft_normalized": draw(st.booleans())}, draw(st.integers(1, 100))


@settings(max_examples=200)
@given(settings_and_length())
def test_inverse_returns_the_audio_for_every_accepted_size_and_any_length(case: tuple[dict[str, Any], int]) -> None:
    sizes, length = case
    stft, audio = transform(**sizes), torch.randn(2, length, dtype=torch.float64)
    torch.testing.assert_close(stft.inverse(stft.forward(audio), length), audio, rtol=0, atol=1e-6)


@settings(max_examples=50)
@given(settings_and_length())
def test_inverse_without_length_returns_the_whole_hops_that_came_in(case: tuple[dict[str, Any], int]) -> None:
    sizes, length = case
    n_fft, hop = sizes["stft_n_fft"], sizes["stft_hop_length"]
    assume(n_fft % 2 == 0)
    stft, audio = transform(**sizes), torch.randn(2, length, dtype=torch.float64)
    out = stft.inverse(stft.forward(audio))
    assert out.shape == (2, max(length, n_fft // 2 + 1) // hop * hop)
    common = min(length, out.shape[-1])
    torch.testing.assert_close(out[:, :common], audio[:, :common], rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 5, 8])
def test_short_audio_is_followed_by_silence(length: int) -> None:
    audio = torch.randn(2, length)
    padded = padded_for_stft(audio, 16)
    assert padded.shape == (2, 9)
    assert torch.equal(padded[:, :length], audio)
    assert padded[:, length:].eq(0).all()
    assert torch.equal(transform().forward(audio), transform().forward(padded))


@pytest.mark.parametrize("length", [9, 10, 100])
def test_audio_long_enough_to_be_reflected_is_not_padded(length: int) -> None:
    audio = torch.randn(2, length)
    assert torch.equal(padded_for_stft(audio, 16), audio)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_transformed_in_float32(dtype: torch.dtype) -> None:
    stft, audio = transform(), torch.randn(2, 40).to(dtype)
    spectrum = stft.forward(audio)
    assert torch.equal(spectrum, stft.forward(audio.float()))
    narrow = spectrum.to(dtype)
    assert torch.equal(stft.inverse(narrow, 40), stft.inverse(narrow.float(), 40))
    assert spectrum.dtype == stft.inverse(narrow, 40).dtype == torch.float32


def test_float64_stays_float64_and_exact() -> None:
    stft, audio = transform(), torch.randn(2, 40, dtype=torch.float64)
    spectrum = stft.forward(audio)
    assert spectrum.dtype == torch.float64
    torch.testing.assert_close(stft.inverse(spectrum, 40), audio, rtol=0, atol=1e-12)


def test_autocast_changes_nothing() -> None:
    stft, audio = transform(), torch.randn(2, 40)
    with torch.autocast("cpu", torch.bfloat16):
        spectrum = stft.forward(audio)
        out = stft.inverse(spectrum, 40)
    assert torch.equal(spectrum, stft.forward(audio))
    assert torch.equal(out, stft.inverse(spectrum, 40))


def test_gradients_flow_through_both_transforms() -> None:
    audio = torch.randn(2, 21, dtype=torch.float64, requires_grad=True)
    stft = transform()
    assert torch.autograd.gradcheck(stft.forward, (audio,))
    spectrum = stft.forward(audio.detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stft.inverse(x, 21), (spectrum,))


def test_any_memory_layout_of_a_spectrum_is_inverted() -> None:
    stft, audio = transform(), torch.randn(2, 3, 40)
    spectrum = stft.forward(audio)
    other = spectrum.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert not other.is_contiguous()
    torch.testing.assert_close(stft.inverse(other, 40), stft.inverse(spectrum.contiguous(), 40))


def test_transforms_take_their_input_by_name() -> None:
    stft, audio = transform(), torch.randn(2, 40)
    spectrum = stft.forward(audio=audio)
    assert torch.equal(spectrum, stft.forward(audio))
    assert torch.equal(stft.inverse(spectrum=spectrum, length=40), stft.inverse(spectrum, 40))


def test_other_failures_are_raised() -> None:
    with pytest.raises(RuntimeError):
        transform(stft_window_fn=lambda length, **_keywords: torch.ones(length + 1)).forward(torch.randn(1, 40))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("window_size", "length"), [(32, 100), (16, 100), (7, 100), (32, 3)])
def test_frames_times_window_are_what_stft_transforms(window_size: int, length: int, normalized: bool) -> None:
    rows = torch.randn(3, length)
    parameters = ParametersComputeLoss(stft_n_fft=16, multi_stft_hop_size=5, multi_stft_normalized=normalized)
    frames, window = frames_and_window(rows, window_size, parameters)
    n_fft = max(window_size, 16)
    expected = torch.stft(
        padded_for_stft(rows, n_fft),
        n_fft,
        5,
        window_size,
        torch.hann_window(window_size),
        normalized=normalized,
        return_complex=True,
    )
    torch.testing.assert_close(torch.fft.rfft(frames * window).mT, expected)
