"""The band layout of a state dict, from the widths of its bands, the configuration and the caller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, cast

import torch

from hunterFormsBS.blocks.layout import DEFAULT_FREQS_PER_BANDS, mask_filter_bank_mel, resolve_mask_filter_bank
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.printable import short_repr

BAND_ARGUMENTS: Final = (
    "freq_range",
    "freqs_per_bands",
    "mask_filter_bank",
    "num_bands",
    "sample_rate",
    "stereo",
    "stft_n_fft",
)
"""The arguments that determine the widths of bands, chosen together because one can compensate another."""

_USUAL_MEL_LAYOUTS: Final = tuple(
    (sample_rate, stft_n_fft)
    for sample_rate in (44100, 48000, 32000, 24000, 22050, 16000, 96000)
    for stft_n_fft in (2048, 4096, 1024, 8192, 512)
)

_MOST_MEL_BANDS: Final = 512


class MelLayout(NamedTuple):
    """Arguments of a mel layout whose bands have the widths of a state dict."""

    sample_rate: int
    stft_n_fft: int
    stereo: bool


class Bands(NamedTuple):
    """Band arguments that fit a state dict.

    Parameters
    ----------
    arguments : dict[str, object]
        Some of `BAND_ARGUMENTS`.
    assumed : list[str]
        The arguments whose values are the most common of several that fit.
    """

    arguments: dict[str, object]
    assumed: list[str]


@cache
def _usual_mel_counts(sample_rate: int, stft_n_fft: int, num_bands: int) -> tuple[int, ...]:
    if num_bands > _MOST_MEL_BANDS:
        return ()
    try:
        mask = mask_filter_bank_mel(sample_rate, stft_n_fft, num_bands)
    except ValueError:  # too many bands: some are empty
        return ()
    return tuple(int(count) for count in mask.sum(dim=1))


def find_mel_layout(widths: Sequence[int]) -> MelLayout | None:
    """Return a common mel layout whose bands have these widths, or `None`."""
    for sample_rate, stft_n_fft in _USUAL_MEL_LAYOUTS:
        counts = _usual_mel_counts(sample_rate, stft_n_fft, len(widths))
        for stereo in (True, False):
            if list(widths) == [count * (4 if stereo else 2) for count in counts]:
                return MelLayout(sample_rate, stft_n_fft, stereo)
    return None


def infer_bands(widths: Sequence[int], *, overlapping: bool) -> dict[str, object]:
    """Return the band arguments that the widths alone determine."""
    if overlapping:
        arguments: dict[str, object] = {"num_bands": len(widths)}
        mel_layout = find_mel_layout(widths)
        if mel_layout is not None:
            arguments.update(stereo=mel_layout.stereo, stft_n_fft=mel_layout.stft_n_fft)
        elif any(width % 4 for width in widths):
            arguments["stereo"] = False
        return arguments
    if any(width % 4 for width in widths):
        stereo = False
    elif sum(widths) // 4 % 2:
        stereo = True
    else:
        return {}
    freqs_per_bands = tuple(width // (4 if stereo else 2) for width in widths)
    return {"stereo": stereo, "freqs_per_bands": freqs_per_bands, "stft_n_fft": 2 * (sum(freqs_per_bands) - 1)}


def resolve_bands(widths: Sequence[int], known: Mapping[str, object], *, overlapping: bool) -> Bands:
    """Return the band arguments that fit a state dict and contradict the fewest of the known ones.

    Parameters
    ----------
    widths : Sequence[int]
        Real inputs of each band: two for each of its bins and channels.
    known : Mapping[str, object]
        Arguments from the configuration or the caller.
    overlapping : bool
        Whether the state dict seems to be that of a Mel-Band RoFormer.

    Returns
    -------
    bands : Bands

    Raises
    ------
    CheckpointError
        If neither `known` nor a common mel layout explains the overlap of the bands.
    """
    mel, side_by_side = [*_mel(widths, known)], [*_side_by_side(widths, known, guess=not overlapping)]
    if {"sample_rate", "num_bands"} <= known.keys() or (overlapping and "freqs_per_bands" not in known):
        candidates = [*_with_mask(known), *mel, *side_by_side]
    else:
        candidates = [*_with_mask(known), *side_by_side, *mel]
    fitting = [candidate for candidate in candidates if _fits(candidate, widths)]
    if not fitting:
        raise CheckpointError(
            f"the {len(widths)} bands of the state dict, with {_list(widths)} inputs, fit no layout that is known for "
            f"them{_describe(known)}: pass the sample_rate, stft_n_fft and stereo that it was trained with, or its "
            "mask_filter_bank"
        )
    best = min(fitting, key=lambda candidate: len(contradictions(candidate, known)))
    return Bands(best, _assumed(best, known, widths))


def contradictions(candidate: Mapping[str, object], known: Mapping[str, object]) -> list[str]:
    """Return the names of known arguments that a candidate changes or leaves out."""
    silent: set[str] = set()
    if "mask_filter_bank" in candidate or "num_bands" not in candidate:
        silent.add("sample_rate")  # it only describes the audio
    # Our own configurations state every argument, including defaults of arguments that another overrides.
    overridden = "freqs_per_bands" not in candidate and not known.keys().isdisjoint({"num_bands", "mask_filter_bank"})
    if overridden and _equal(known.get("freqs_per_bands"), DEFAULT_FREQS_PER_BANDS):
        silent.add("freqs_per_bands")
    return [
        name
        for name in BAND_ARGUMENTS
        if name in known and name not in silent and not _equal(candidate.get(name), known[name])
    ]


def _with_mask(known: Mapping[str, object]) -> Iterator[dict[str, object]]:
    if "mask_filter_bank" in known:
        names = ("mask_filter_bank", "num_bands", "sample_rate", "freq_range", "stft_n_fft")
        mask = cast("Any", known["mask_filter_bank"])
        given = {"stft_n_fft": 2 * (mask.shape[-1] - 1), **{name: known[name] for name in names if name in known}}
        yield from _in_stereo_and_mono(given, known)


def _mel(widths: Sequence[int], known: Mapping[str, object]) -> Iterator[dict[str, object]]:
    given = {name: known[name] for name in ("sample_rate", "stft_n_fft", "freq_range") if name in known}
    given = {"sample_rate": 44100, "stft_n_fft": 2048, **given, "num_bands": len(widths)}
    yield from _in_stereo_and_mono(given, known)
    usual = find_mel_layout(widths)
    if usual is not None:
        yield {"num_bands": len(widths), **usual._asdict()}


def _side_by_side(widths: Sequence[int], known: Mapping[str, object], *, guess: bool) -> Iterator[dict[str, object]]:
    audio = {name: known[name] for name in ("sample_rate",) if name in known}
    stft = {"stft_n_fft": 2048} | audio | {name: known[name] for name in ("stft_n_fft", "freq_range") if name in known}
    if "freqs_per_bands" in known:
        yield from _in_stereo_and_mono({**stft, "freqs_per_bands": known["freqs_per_bands"]}, known)
    if not guess:
        return
    for stereo in _stereo_first(widths):
        freqs_per_bands = tuple(width // (4 if stereo else 2) for width in widths)
        from_widths: dict[str, object] = {"stereo": stereo, "freqs_per_bands": freqs_per_bands}
        yield {**stft, **from_widths}
        yield {**audio, **from_widths, "stft_n_fft": 2 * (sum(freqs_per_bands) - 1)}


def _in_stereo_and_mono(given: dict[str, object], known: Mapping[str, object]) -> Iterator[dict[str, object]]:
    first = bool(known.get("stereo", True))
    yield {**given, "stereo": first}
    yield {**given, "stereo": not first}


def _stereo_first(widths: Sequence[int]) -> tuple[bool, ...]:
    """Return the possible numbers of channels, the more likely first."""
    return (False,) if any(width % 4 for width in widths) else (True, False)


def _fits(candidate: Mapping[str, object], widths: Sequence[int]) -> bool:
    stft_n_fft = candidate["stft_n_fft"]
    if not isinstance(stft_n_fft, int) or stft_n_fft < 1:
        return False
    layout: dict[str, Any] = {
        "mask_filter_bank": None,
        "sample_rate": None,
        "num_bands": None,
        "freqs_per_bands": DEFAULT_FREQS_PER_BANDS,
        "freq_range": None,
        **{name: value for name, value in candidate.items() if name != "stereo"},
    }
    try:
        mask = resolve_mask_filter_bank(num_freqs=stft_n_fft // 2 + 1, **layout)
    except (TypeError, ValueError):
        return False
    reals_per_bin = 4 if candidate["stereo"] else 2
    return (mask.sum(dim=1) * reals_per_bin).equal(torch.tensor(widths, device=mask.device))


def _assumed(best: Mapping[str, object], known: Mapping[str, object], widths: Sequence[int]) -> list[str]:
    """Return the arguments that are only likely; `infer_configuration` explains why."""
    assumed: list[str] = []
    if "freqs_per_bands" in best:
        bins = sum(cast("Sequence[int]", best["freqs_per_bands"]))
        unusual = "stft_n_fft" not in known and (bins - 1) & (bins - 2) != 0
        if unusual and "freq_range" not in known:
            assumed += ["freq_range", "stft_n_fft"]
        if "stereo" not in known and bins % 2 == 0 and not any(width % 4 for width in widths):
            assumed.append("stereo")
    return assumed


def _equal(one: object, other: object) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(cast("Sequence[object]", one)) == list(cast("Sequence[object]", other))
    if one is other:
        return True
    equal = cast("Any", one == other)
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)


def _list(widths: Sequence[int]) -> str:
    shown = ", ".join(map(str, widths[:6]))
    return f"{shown}, …, {widths[-1]}" if len(widths) > 7 else ", ".join(map(str, widths))


def _describe(known: Mapping[str, object]) -> str:
    names = ("sample_rate", "stft_n_fft", "num_bands", "freq_range", "stereo")
    stated = [f"{name}={short_repr(known[name])}" for name in names if name in known]
    return f" (with {', '.join(stated)})" if stated else ""
