"""Augmentations of stems, named as in Music-Source-Separation-Training's configurations.

    augment = Augmentations({"all": {"random_polarity": 0.5}, "vocals": {"pitch_shift": 0.1, …}}, 44100)
    vocals = augment(vocals, "vocals", numpy.random.default_rng(0))

Effects need pedalboard (extra `augmentations`). Every number is drawn from the generator that the caller passes, so a
segment is the same whenever and wherever it is made. audiomentations draws from global generators instead.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from hunterFormsBS.installation import how_to_install

# pedalboard is imported on use: most configurations have no effects.

Audio = NDArray[np.float32]
Apply = Callable[[Audio, int, Sequence[float], np.random.Generator], Audio]

MP3_DELAY: Final = 1105
"""Delay of LAME (576) and an MP3 decoder (529), in samples."""

EQ_BANDS: Final = ((40, 95), (90, 205), (195, 440), (420, 950), (910, 2050), (1950, 4400), (4200, 9500))
"""Lowest and highest frequency, in Hz, of the equalizer's seven bands: a low shelf, five peaks, a high shelf."""


class Effect(NamedTuple):
    """One effect.

    Parameters
    ----------
    bounds : tuple of (str, str)
        For each of its values, the settings for the smallest and the largest.
    apply : callable
        Takes audio, `(s, t)`, the sample rate, the values, and the generator.
    by_pedalboard : bool
        Whether it needs pedalboard.
    """

    bounds: tuple[tuple[str, str], ...]
    apply: Apply
    by_pedalboard: bool = True


class Augmentations:
    """Random effects for each stem.

    Parameters
    ----------
    settings : mapping
        `all` holds probabilities of effects, by their names in `EFFECTS`, and the bounds of their values; a section
        with the name of a stem overrides them for that stem.
    sample_rate : int
        Hz.

    Raises
    ------
    ValueError
        If an effect is unknown, or its bounds are missing or not numbers.
    ImportError
        If pedalboard is needed and not installed.
    """

    def __init__(self, settings: Mapping[str, Any], sample_rate: int) -> None:
        self.sample_rate = sample_rate
        common = dict(settings.get("all") or {})
        self.by_stem = {
            stem: _chosen(stem, {**common, **(own or {})}) for stem, own in settings.items() if stem != "all"
        }
        self.common = _chosen("all", common)

    def __call__(self, audio: Audio, stem: str, random: np.random.Generator) -> Audio:
        """Return audio, `(s, t)`, with random effects for this stem."""
        for name, probability, bounds in self.by_stem.get(stem, self.common):
            if random.random() < probability:
                values = [random.uniform(low, high) for low, high in bounds]
                changed = EFFECTS[name].apply(audio, self.sample_rate, values, random)
                audio = _of_length(changed, audio.shape[-1])
        return audio


class MixtureCodec:
    """MP3 compression of mixtures; stems do not change.

    Parameters
    ----------
    probability : float
    bounds : (float, float)
        Smallest and largest bit rate, kbit/s.
    sample_rate : int
        Hz.
    """

    def __init__(self, probability: float, bounds: tuple[float, float], sample_rate: int) -> None:
        _require_pedalboard("mp3_compression_on_mixture")
        self.probability = probability
        self.bounds = bounds
        self.sample_rate = sample_rate

    def __call__(self, audio: Audio, random: np.random.Generator) -> Audio:
        """Return audio, `(s, t)`, unchanged or compressed and decoded."""
        if random.random() >= self.probability:
            return audio
        return mp3(audio, self.sample_rate, [random.uniform(*self.bounds)], random)


def _chosen(stem: str, settings: Mapping[str, Any]) -> list[tuple[str, float, list[tuple[float, float]]]]:
    """Return name, probability and bounds of each possible effect, in the order of `EFFECTS`."""
    known = {*EFFECTS, *(key for effect in EFFECTS.values() for pair in effect.bounds for key in pair)}
    # The choice of an encoder: there is only one here.
    known |= {"mp3_compression_backend"}
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(EFFECTS)}"
            raise ValueError(f"augmentations.{stem} has {name!r:.80}, which is unknown: {hint}")
    chosen: list[tuple[str, float, list[tuple[float, float]]]] = []
    for name, effect in EFFECTS.items():
        probability = _number(stem, name, settings.get(name, 0))
        if probability <= 0:
            continue
        bounds: list[tuple[float, float]] = []
        for pair in effect.bounds:
            if missing := [key for key in pair if key not in settings]:
                raise ValueError(f"augmentations.{stem} has {name}, and lacks {' and '.join(missing)}: add them")
            low, high = (_number(stem, key, settings[key]) for key in pair)
            if low > high:
                raise ValueError(f"augmentations.{stem}: {pair[0]}={low} is more than {pair[1]}={high}: swap them")
            bounds.append((low, high))
        if effect.by_pedalboard:
            _require_pedalboard(name)
        chosen.append((name, probability, bounds))
    return chosen


def _require_pedalboard(effect: str) -> None:
    try:
        import pedalboard  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ImportError(
            f"{effect} is an effect of pedalboard: {how_to_install('augmentations')} ({error})"
        ) from error


def _number(stem: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"augmentations.{stem}.{name}={value!r:.80} must be a number")
    return float(value)


def _of_length(audio: Audio, length: int) -> Audio:
    """Cut audio, or pad it with silence."""
    missing = max(0, length - audio.shape[-1])
    return np.ascontiguousarray(np.pad(audio[..., :length], ((0, 0), (0, missing))), dtype=np.float32)


def _plugin(name: str, *parameters: str) -> Apply:
    """Return a function that applies a plugin of pedalboard."""

    def apply(audio: Audio, rate: int, values: Sequence[float], _random: np.random.Generator) -> Audio:
        import pedalboard

        plugin: Any = getattr(pedalboard, name)(**dict(zip(parameters, values, strict=True)))
        played: Audio = plugin(audio, rate)
        return played

    return apply


def _pedalboard(key: str, plugin: str, *parameters: str) -> Effect:
    """Return the effect of a plugin, with bounds named after it and its parameters."""
    bounds = tuple((f"{key}_{parameter}_min", f"{key}_{parameter}_max") for parameter in parameters)
    return Effect(bounds, _plugin(plugin, *parameters))


def _equalize(audio: Audio, rate: int, values: Sequence[float], random: np.random.Generator) -> Audio:
    """Apply random gains to seven bands. The value is the first band's gain in dB; the bounds apply to all."""
    import pedalboard
    from pedalboard import Pedalboard  # type: ignore[attr-defined]  # pyright: ignore[reportPrivateImportUsage]

    kinds: list[Any] = [pedalboard.LowShelfFilter, *[pedalboard.PeakFilter] * 5, pedalboard.HighShelfFilter]
    plugins: list[Any] = [
        kind(cutoff_frequency_hz=_between(*band, random), gain_db=gain, q=random.uniform(0.7, 1.4))
        for kind, band, gain in zip(kinds, EQ_BANDS, values, strict=True)
        if band[1] < rate / 2
    ]
    return Pedalboard(plugins)(audio, rate)


def _between(low: float, high: float, random: np.random.Generator) -> float:
    """Draw a frequency, uniformly in octaves."""
    return float(np.exp(random.uniform(float(np.log(low)), float(np.log(high)))))


def _saturate(audio: Audio, _rate: int, values: Sequence[float], _random: np.random.Generator) -> Audio:
    """Saturate the loudest fraction of the samples by a hyperbolic tangent, and keep the loudness."""
    threshold = np.percentile(np.abs(audio), 100 * (1 - 0.99 * values[0])) + 1e-6
    bent: Audio = np.tanh(0.5 / threshold * audio)
    loudness = np.sqrt(np.mean(audio**2) / max(float(np.mean(bent**2)), 1e-12))
    return np.asarray(bent * loudness, dtype=np.float32)


def _stretch(audio: Audio, rate: int, values: Sequence[float], _random: np.random.Generator) -> Audio:
    import pedalboard

    return cast("Audio", pedalboard.time_stretch(audio, rate, stretch_factor=values[0], high_quality=False))


def _noise(audio: Audio, _rate: int, values: Sequence[float], random: np.random.Generator) -> Audio:
    noise = random.standard_normal(audio.shape, dtype=np.float32)
    return cast("Audio", audio + np.float32(values[0]) * noise)


def mp3(audio: Audio, rate: int, values: Sequence[float], _random: np.random.Generator) -> Audio:
    """Compress audio, `(s, t)`, to a bit rate in kbit/s, and decode it, with its original offset and length."""
    from pedalboard.io import AudioFile

    rates = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    nearest = min(rates, key=lambda each: abs(each - values[0]))
    file = io.BytesIO()
    with AudioFile(file, "w", rate, audio.shape[0], format="mp3", quality=nearest) as encoder:
        encoder.write(audio)  # pyright: ignore[reportUnknownMemberType]
    with AudioFile(io.BytesIO(file.getvalue())) as decoder:
        decoded = decoder.read(decoder.frames)
    return _of_length(decoded[:, MP3_DELAY:], audio.shape[-1])


def _swap_channels(audio: Audio, _rate: int, _values: Sequence[float], _random: np.random.Generator) -> Audio:
    return audio[::-1]


def _reverse(audio: Audio, _rate: int, _values: Sequence[float], _random: np.random.Generator) -> Audio:
    return audio[:, ::-1]


def _negate(audio: Audio, _rate: int, _values: Sequence[float], _random: np.random.Generator) -> Audio:
    return -audio


def _pair(first: str, *, key: str) -> tuple[str, str]:
    return f"{key}_min_{first}", f"{key}_max_{first}"


EFFECTS: Final[Mapping[str, Effect]] = {
    "channel_shuffle": Effect((), _swap_channels, by_pedalboard=False),
    "random_inverse": Effect((), _reverse, by_pedalboard=False),
    "random_polarity": Effect((), _negate, by_pedalboard=False),
    "pitch_shift": Effect((_pair("semitones", key="pitch_shift"),), _plugin("PitchShift", "semitones")),
    "seven_band_parametric_eq": Effect((_pair("gain_db", key="seven_band_parametric_eq"),) * 7, _equalize),
    "tanh_distortion": Effect((("tanh_distortion_min", "tanh_distortion_max"),), _saturate, by_pedalboard=False),
    "mp3_compression": Effect((_pair("bitrate", key="mp3_compression"),), mp3),
    "gaussian_noise": Effect((_pair("amplitude", key="gaussian_noise"),), _noise, by_pedalboard=False),
    "time_stretch": Effect((_pair("rate", key="time_stretch"),), _stretch),
    "pedalboard_reverb": _pedalboard(
        "pedalboard_reverb", "Reverb", "room_size", "damping", "wet_level", "dry_level", "width"
    ),
    "pedalboard_chorus": _pedalboard(
        "pedalboard_chorus", "Chorus", "rate_hz", "depth", "centre_delay_ms", "feedback", "mix"
    ),
    "pedalboard_phazer": _pedalboard(
        "pedalboard_phazer", "Phaser", "rate_hz", "depth", "centre_frequency_hz", "feedback", "mix"
    ),
    "pedalboard_distortion": _pedalboard("pedalboard_distortion", "Distortion", "drive_db"),
    "pedalboard_pitch_shift": _pedalboard("pedalboard_pitch_shift", "PitchShift", "semitones"),
    "pedalboard_resample": _pedalboard("pedalboard_resample", "Resample", "target_sample_rate"),
    "pedalboard_bitcrash": _pedalboard("pedalboard_bitcrash", "Bitcrush", "bit_depth"),
    "pedalboard_mp3_compressor": Effect(
        ((f"{'pedalboard_mp3_compressor_' * 2}min", f"{'pedalboard_mp3_compressor_' * 2}max"),),
        _plugin("MP3Compressor", "vbr_quality"),
    ),
    "pedalboard_compressor": _pedalboard("pedalboard_compressor", "Compressor", "threshold_db", "ratio"),
}
"""The effects in the order in which they are applied. All but the last, a dynamic range compressor, are MSST's."""
