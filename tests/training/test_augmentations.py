"""Augmentations: what each effect does to a sound, which ones chance chooses, and that they can be repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hunterFormsBS.training.augmentations import EFFECTS, Augmentations, MixtureCodec, mp3

RATE = 44100


def music(seed: int = 0) -> np.ndarray:
    """Return half a second of a decaying chord and some noise, (s, t)."""
    random = np.random.default_rng(seed)
    seconds = np.arange(RATE // 2) / RATE
    chord = sum(np.sin(2 * np.pi * hertz * seconds) for hertz in (220, 277.2, 329.6)) * np.exp(-4 * seconds) / 8
    return (np.stack([chord, 0.7 * chord]) + random.normal(0, 0.005, (2, len(seconds)))).astype(np.float32)


def always(name: str, value: float | None = None, **bounds: float) -> dict[str, Any]:
    """Return settings of an effect that is certain, all of its values between these bounds."""
    settings: dict[str, Any] = {name: 1.0}
    for pair in EFFECTS[name].bounds:
        for key in pair:
            settings[key] = bounds.get(key, value)
    return settings


def bounds(name: str, low: float, high: float) -> dict[str, float]:
    return {f"{name}_min": low, f"{name}_max": high}


# For each effect a value that all of its parameters take.
VALUES: dict[str, dict[str, Any]] = {
    "channel_shuffle": {},
    "random_inverse": {},
    "random_polarity": {},
    "pitch_shift": {"value": 3},
    "seven_band_parametric_eq": {"value": 6},
    "tanh_distortion": {"value": 0.5},
    "mp3_compression": {"value": 64},
    "gaussian_noise": {"value": 0.01},
    "time_stretch": {"value": 0.8},
    "pedalboard_reverb": {"value": 0.5},
    "pedalboard_chorus": {"value": 0.5} | bounds("pedalboard_chorus_centre_delay_ms", 5, 9),
    "pedalboard_phazer": {"value": 0.5} | bounds("pedalboard_phazer_centre_frequency_hz", 300, 900),
    "pedalboard_distortion": {"value": 20},
    "pedalboard_pitch_shift": {"value": -2},
    "pedalboard_resample": {"value": 8000},
    "pedalboard_bitcrash": {"value": 6},
    "pedalboard_mp3_compressor": {"value": 8},
    "pedalboard_compressor": {"value": -30} | bounds("pedalboard_compressor_ratio", 4, 8),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_changes_the_sound_keeps_its_shape_and_can_be_repeated(name: str) -> None:
    augment = Augmentations({"all": always(name, **VALUES[name])}, RATE)
    audio = music()
    before = audio.copy()
    first, again = (augment(audio, "vocals", np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(audio, before)
    np.testing.assert_array_equal(first, again)
    assert first.shape == audio.shape
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert np.isfinite(first).all()
    assert np.abs(first - audio).max() > 1e-3


def only(name: str, **values: Any) -> np.ndarray:
    return Augmentations({"all": always(name, **values)}, RATE)(music(), "x", np.random.default_rng(0))


def test_effects_without_parameters_are_their_formulas() -> None:
    np.testing.assert_array_equal(only("channel_shuffle"), music()[[1, 0]])
    np.testing.assert_array_equal(only("random_inverse"), music()[:, ::-1])
    np.testing.assert_array_equal(only("random_polarity"), -music())


def loudest_frequency(audio: np.ndarray) -> float:
    return float(np.fft.rfftfreq(audio.shape[-1], 1 / RATE)[np.abs(np.fft.rfft(audio[0])).argmax()])


@pytest.mark.parametrize("name", ["pitch_shift", "pedalboard_pitch_shift"])
def test_a_pitch_is_shifted_by_semitones(name: str) -> None:
    sine = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)[None].repeat(2, 0)
    shifted = Augmentations({"all": always(name, 12)}, RATE)(sine, "x", np.random.default_rng(0))
    assert loudest_frequency(shifted) == pytest.approx(880, rel=0.01)


def test_a_rate_below_one_makes_a_sound_longer_and_it_is_cut() -> None:
    click = np.zeros((2, 40000), np.float32)
    click[:, 20000:20100] = 0.5
    slower, faster = (
        Augmentations({"all": always("time_stretch", rate)}, RATE)(click, "x", np.random.default_rng(0))
        for rate in (0.8, 1.25)
    )
    assert np.abs(slower[0]).argmax() == pytest.approx(25000, abs=600)
    assert np.abs(faster[0]).argmax() == pytest.approx(16000, abs=600)
    assert not faster[:, 33000:].any()


def test_noise_has_the_amplitude_asked_for() -> None:
    assert (only("gaussian_noise", value=0.01) - music()).std() == pytest.approx(0.01, rel=0.02)


def test_saturation_keeps_the_loudness_and_bends_peaks() -> None:
    bent = only("tanh_distortion", value=0.8)
    assert np.sqrt((bent**2).mean()) == pytest.approx(np.sqrt((music() ** 2).mean()), rel=1e-3)
    assert np.abs(bent).max() < 0.9 * np.abs(music()).max()


def test_an_equalizer_with_gains_of_zero_changes_nothing() -> None:
    np.testing.assert_allclose(only("seven_band_parametric_eq", value=0), music(), atol=1e-5)


@pytest.mark.parametrize("bitrate", [64, 128, 320])
def test_compressed_audio_stays_in_its_place(bitrate: int) -> None:
    audio = music()
    decoded = mp3(audio, RATE, [bitrate], np.random.default_rng(0))
    correlation = np.fft.irfft(np.fft.rfft(decoded[0]) * np.fft.rfft(audio[0]).conj())
    assert int(correlation.argmax()) == 0
    assert decoded.shape == audio.shape
    error = ((decoded - audio)[:, :-2000] ** 2).sum() / (audio**2).sum()
    assert 10 * np.log10(error) < -15


def test_effects_occur_with_their_probabilities() -> None:
    augment = Augmentations({"all": {"random_polarity": 0.3}}, RATE)
    audio = music()[:, :10]
    random = np.random.default_rng(1)
    share = np.mean([augment(audio, "x", random)[0, 0] == -audio[0, 0] for _ in range(2000)])
    assert share == pytest.approx(0.3, abs=0.04)


def test_a_stem_replaces_what_is_said_for_all() -> None:
    augment = Augmentations(
        {"all": {"random_polarity": 1.0, "channel_shuffle": 1.0}, "bass": {"channel_shuffle": 0}}, RATE
    )
    audio = music()
    np.testing.assert_array_equal(augment(audio, "vocals", np.random.default_rng(0)), -audio[::-1])
    np.testing.assert_array_equal(augment(audio, "bass", np.random.default_rng(0)), -audio)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"all": {"pitch_shit": 0.1}}, r"augmentations\.all has 'pitch_shit'.*did you mean pitch_shift\?"),
        ({"bass": {"pitch_shift": 0.1}}, r"bass has pitch_shift, and lacks pitch_shift_min_semitones and"),
        ({"all": always("gaussian_noise", "loud")}, r"gaussian_noise_min_amplitude='loud' must be a number"),
        ({"all": {"random_polarity": True}}, r"random_polarity=True must be a number"),
        (
            {"all": {"tanh_distortion": 1, "tanh_distortion_min": 0.7, "tanh_distortion_max": 0.1}},
            r"tanh_distortion_min=0\.7 is more than tanh_distortion_max=0\.1: swap them",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentations(settings, RATE)


def test_a_codec_of_the_mixture_comes_by_chance() -> None:
    audio = music()
    random = np.random.default_rng(0)
    assert MixtureCodec(0.0, (64, 64), RATE)(audio, random) is audio
    assert not np.array_equal(MixtureCodec(1.0, (64, 64), RATE)(audio, random), audio)
