"""Band layouts: which frequency bins each band contains.

A layout is a boolean tensor `(band, freq)`, called a mask filter bank. It is the only difference between BS-RoFormer
(bands side by side) and Mel-Band RoFormer (overlapping triangles). All tensors are made on the CPU, whatever the
default device, because a model may be built on the meta device.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import SupportsIndex, cast

import torch
from torch import Tensor

from hunterFormsBS.printable import short_repr

DEFAULT_FREQS_PER_BANDS: tuple[int, ...] = (
    *(2,) * 24,
    *(4,) * 12,
    *(12,) * 8,
    *(24,) * 8,
    *(48,) * 8,
    128,
    129,
)
"""Bins in each of BS-RoFormer's 62 bands, from the lowest up; they sum to the 1025 bins of `stft_n_fft=2048`."""

_LOWEST_SAMPLE_RATE = 1e-3
_HIGHEST_SAMPLE_RATE = 10**9
_LARGEST_MASK = 2**26
"""Largest number of entries of a layout, bands times bins; beyond it memory would run out."""

# The Slaney mel scale: linear to 1 kHz, then 27 mel for each factor of 6.4.
_HZ_PER_MEL = 200.0 / 3
_HZ_KNEE = 1000.0
_MEL_KNEE = _HZ_KNEE / _HZ_PER_MEL
_LOG_HZ_PER_MEL = math.log(6.4) / 27.0


def mask_filter_bank_non_overlapping(
    freqs_per_bands: Sequence[int], num_freqs: int, freq_range: tuple[int, int] | None = None
) -> Tensor:
    """Lay bands side by side, from the lowest bin up.

    Parameters
    ----------
    freqs_per_bands : Sequence[int]
        Number of bins in each band; they sum to `num_freqs`, or to the number of bins within `freq_range`.
    num_freqs : int
        Number of frequency bins.
    freq_range : tuple[int, int] | None, default None
        The bins that belong to bands; see `resolve_freq_range`.

    Returns
    -------
    mask_filter_bank : Tensor
        Boolean, `(band, freq)`.
    """
    counts = check_freqs_per_bands(freqs_per_bands)
    low, high = resolve_freq_range(freq_range, num_freqs)
    if sum(counts) != high - low:
        bins = f"{num_freqs} frequency bins"
        if high - low != num_freqs:
            bins = f"{high - low} frequency bins that freq_range=({low}, {high}) leaves of {num_freqs}"
        raise ValueError(
            f"the {len(counts)} values of freqs_per_bands sum to {sum(counts)}, but must sum to the {bins}: "
            "change freqs_per_bands, or pass mask_filter_bank, or sample_rate and num_bands for a mel layout"
        )
    return _mask_from_runs(list(accumulate(counts[:-1], initial=low)), counts, num_freqs)


def mask_filter_bank_mel(sample_rate: float, stft_n_fft: int, num_bands: int) -> Tensor:
    """Make the mel layout: band b holds the bins where triangle b of a Slaney mel filter bank is positive.

    The mask is that of `librosa.filters.mel(sr=sample_rate, n_fft=stft_n_fft, n_mels=num_bands) > 0`, with the first
    bin put into the first band and the last bin into the last, where the triangles are zero.

    Parameters
    ----------
    sample_rate : float
        Samples per second of the audio.
    stft_n_fft : int
        Length of the Fourier transform, in samples.
    num_bands : int
        Number of bands.

    Returns
    -------
    mask_filter_bank : Tensor
        Boolean, `(band, freq)`, with `stft_n_fft // 2 + 1` bins.

    Raises
    ------
    ValueError
        If a band contains no bin: the lowest triangles are narrower than the spacing of the bins.
    """
    check_sample_rate(sample_rate)
    n_fft = _positive_integer("stft_n_fft", stft_n_fft)
    bands = _positive_integer("num_bands", num_bands)
    bins = n_fft // 2 + 1
    if bands * bins > _LARGEST_MASK:
        raise ValueError(
            f"num_bands={short_repr(bands)} are too many for the {short_repr(bins)} bins of stft_n_fft: bands times "
            f"bins may be at most {_LARGEST_MASK}, and 60 bands are usual"
        )

    mask = _mask_mel(sample_rate, n_fft, bands)
    empty = _empty_bands(mask)
    if empty:
        # A single band always holds every bin, so the bisection starts from a valid number.
        fits, fails = 1, bands
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if _empty_bands(_mask_mel(sample_rate, n_fft, middle)):
                fails = middle
            else:
                fits = middle
        raise ValueError(
            f"bands {_ranges(empty)} of the mel layout contain no bin with sample_rate={short_repr(sample_rate)}, "
            f"stft_n_fft={n_fft}, num_bands={bands}: "
            f"use a larger stft_n_fft, or fewer bands, for example num_bands={fits}"
        )
    return mask


def resolve_mask_filter_bank(
    *,
    num_freqs: int,
    stft_n_fft: int,
    mask_filter_bank: Tensor | None,
    sample_rate: float | None,
    num_bands: int | None,
    freqs_per_bands: Sequence[int],
    freq_range: tuple[int, int] | None,
) -> Tensor:
    """Choose the layout by a model's arguments, and check it.

    `mask_filter_bank` takes precedence, then the mel layout of `sample_rate` and `num_bands`, then `freqs_per_bands`,
    bands side by side. `sample_rate` without `num_bands` only describes the audio.

    Parameters
    ----------
    num_freqs : int
        Number of frequency bins of the STFT.
    stft_n_fft : int
        Length of the Fourier transform, in samples; determines the frequencies of bins in a mel layout.
    mask_filter_bank : Tensor | None
        Boolean, `(band, num_freqs)`.
    sample_rate : float | None
        Samples per second of the audio.
    num_bands : int | None
        Number of bands. It must agree with the layout.
    freqs_per_bands : Sequence[int]
        As in `mask_filter_bank_non_overlapping`.
    freq_range : tuple[int, int] | None
        As in `resolve_freq_range`. Bins outside are removed from every band.

    Returns
    -------
    mask_filter_bank : Tensor
        Boolean, `(band, freq)`, on the CPU, sharing memory with no argument. No band is empty, and every bin within
        `freq_range` is in a band.
    """
    low, high = resolve_freq_range(freq_range, num_freqs)
    if sample_rate is not None:
        check_sample_rate(sample_rate)
    if mask_filter_bank is not None:
        reason = "mask_filter_bank decides the layout"
        mask = check_mask_filter_bank(mask_filter_bank, num_freqs)
    elif sample_rate is not None and num_bands is not None:
        reason = "sample_rate and num_bands together ask for a mel layout"
        if (sample_rate, stft_n_fft, num_bands) == (44100, 2048, 60):
            mask = mask_filter_bank_mel_band_default
        else:
            mask = mask_filter_bank_mel(sample_rate, stft_n_fft, num_bands)
        mask = check_mask_filter_bank(mask, num_freqs)
    else:
        reason = ""
        mask = mask_filter_bank_non_overlapping(freqs_per_bands, num_freqs, freq_range)

    if num_bands is not None and _positive_integer("num_bands", num_bands) != len(mask):
        source = "mask_filter_bank" if mask_filter_bank is not None else "freqs_per_bands"
        raise ValueError(
            f"num_bands={num_bands} disagrees with the {len(mask)} bands of {source}: leave num_bands out, "
            "or pass sample_rate with it, and no mask_filter_bank, for a mel layout"
        )
    mask[:, :low] = False
    mask[:, high:] = False
    _refuse_empty_and_uncovered(mask, low, high)
    used = (DEFAULT_FREQS_PER_BANDS, tuple(int(count) for count in mask.sum(dim=1)))
    if reason and tuple(freqs_per_bands) not in used:
        warnings.warn(f"freqs_per_bands is not used: {reason}", stacklevel=2)
    return mask


def resolve_freq_range(freq_range: tuple[int, int] | None, num_freqs: int) -> tuple[int, int]:
    """Replace open ends in a range of bins.

    Parameters
    ----------
    freq_range : tuple[int, int] | None
        First bin, and the bin after the last; -1 leaves that end open, and `None` both.
    num_freqs : int
        Number of frequency bins.

    Returns
    -------
    low, high : tuple[int, int]
        `0 <= low < high <= num_freqs`.
    """
    num_freqs = _positive_integer("num_freqs", num_freqs)
    if freq_range is None:
        return 0, num_freqs
    remedy = "pass (low, high) in bins, high not included, -1 for an open end"
    ends = _integers("freq_range", freq_range)
    if len(ends) != 2:
        raise ValueError(f"freq_range must be two integers, but is {short_repr(freq_range)}: {remedy}")
    low, high = ends
    low, high = (0 if low == -1 else low), (num_freqs if high == -1 else high)
    if not 0 <= low < high <= num_freqs:
        raise ValueError(
            f"freq_range=({ends[0]}, {ends[1]}) must satisfy 0 <= low < high <= {num_freqs}, "
            f"the number of bins: {remedy}"
        )
    return low, high


def check_freqs_per_bands(freqs_per_bands: object) -> list[int]:
    """Return the numbers of bins in each band; refuse invalid ones."""
    counts = _integers("freqs_per_bands", freqs_per_bands)
    if not counts or min(counts) < 1:
        raise ValueError(
            f"freqs_per_bands must be at least one number, and each at least 1, but is {short_repr(counts)}"
        )
    return counts


def check_mask_filter_bank(mask_filter_bank: object, num_freqs: int | None = None) -> Tensor:
    """Return a copy, on the CPU, of a boolean tensor `(band, freq)`; refuse anything else."""
    mask = mask_filter_bank
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        received = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask_filter_bank must be a boolean tensor (band, freq), but is {received}: "
            "pass torch.as_tensor(mask_filter_bank) > 0"
        )
    if mask.layout != torch.strided or mask.is_nested or mask.is_meta:
        raise TypeError(
            f"mask_filter_bank is a tensor of layout {mask.layout} on {mask.device}: pass a dense one that holds values"
        )
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(
            f"mask_filter_bank must be (band, freq), at least one of each, but has the shape {tuple(mask.shape)}"
        )
    if num_freqs is not None and mask.shape[1] != num_freqs:
        raise ValueError(
            f"mask_filter_bank has {mask.shape[1]} columns, but there are {num_freqs} frequency bins: "
            "change the mask, or stft_n_fft, which makes stft_n_fft // 2 + 1 bins"
        )
    return mask.detach().to("cpu", copy=True)


def check_sample_rate(sample_rate: object) -> None:
    """Refuse anything but a positive, finite number."""
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float)):
        raise TypeError(
            f"sample_rate must be a number, but {short_repr(sample_rate)} is a {type(sample_rate).__name__}"
        )
    if not 0 < sample_rate < math.inf:
        raise ValueError(f"sample_rate must be positive and finite, but is {short_repr(sample_rate)}")
    if not _LOWEST_SAMPLE_RATE <= sample_rate <= _HIGHEST_SAMPLE_RATE:
        raise ValueError(
            f"sample_rate must be from {_LOWEST_SAMPLE_RATE} to {_HIGHEST_SAMPLE_RATE} Hz, but is "
            f"{short_repr(sample_rate)}"
        )


def is_overlapping(mask_filter_bank: Tensor) -> bool:
    """Tell whether some bin belongs to more than one band."""
    return bool((mask_filter_bank.sum(dim=0) > 1).any())


def _hz_to_mel(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < _HZ_KNEE else _MEL_KNEE + math.log(hz / _HZ_KNEE) / _LOG_HZ_PER_MEL


def _mel_to_hz(mel: float) -> float:
    return mel * _HZ_PER_MEL if mel < _MEL_KNEE else _HZ_KNEE * math.exp(_LOG_HZ_PER_MEL * (mel - _MEL_KNEE))


def _mask_mel(sample_rate: float, stft_n_fft: int, num_bands: int) -> Tensor:
    """Make the mel mask, including empty bands. Consecutive triangles overlap, so every bin is covered."""
    highest = _hz_to_mel(sample_rate / 2)
    step = highest / (num_bands + 1)
    # If a corner falls exactly on a bin, rounding decides: the order of operations is part of the definition.
    corners = [_mel_to_hz(k * step) for k in range(num_bands + 1)] + [_mel_to_hz(highest)]
    spacing = 1.0 / (stft_n_fft * (1.0 / sample_rate))
    hz = torch.arange(stft_n_fft // 2 + 1, dtype=torch.float64, device="cpu") * spacing
    corner = torch.tensor(corners, dtype=torch.float64, device="cpu")[:, None]
    mask = (corner[:-2] < hz) & (hz < corner[2:])
    mask[0, 0] = True
    mask[-1, -1] = True
    return mask


def _mask_from_runs(first: Sequence[int], counts: Sequence[int], num_freqs: int) -> Tensor:
    """Make the mask in which band b holds `counts[b]` bins from bin `first[b]` on."""
    if len(counts) * num_freqs > _LARGEST_MASK:
        raise ValueError(
            f"{len(counts)} bands of {short_repr(num_freqs)} bins are too many: bands times bins may be at most "
            f"{_LARGEST_MASK}"
        )
    start = torch.tensor(first, device="cpu")[:, None]
    stop = start + torch.tensor(counts, device="cpu")[:, None]
    freq = torch.arange(num_freqs, device="cpu")
    return (start <= freq) & (freq < stop)


def _refuse_empty_and_uncovered(mask: Tensor, low: int, high: int) -> None:
    num_bands, num_freqs = mask.shape
    within = f" inside freq_range=({low}, {high})" if high - low < num_freqs else ""
    empty = _empty_bands(mask)
    if empty:
        remedy = "widen freq_range, or leave those bands out of the layout" if within else "remove those rows"
        raise ValueError(f"bands {_ranges(empty)} of {num_bands} contain no bin{within}: {remedy}")
    uncovered = [low + f for f in _indices(~mask[:, low:high].any(dim=0))]
    if uncovered:
        raise ValueError(
            f"bins {_ranges(uncovered)} of {num_freqs} belong to no band{within}: "
            "add them to a band, or leave them out at either end with freq_range=(low, high)"
        )


def _empty_bands(mask: Tensor) -> list[int]:
    return _indices(~mask.any(dim=1))


def _indices(flags: Tensor) -> list[int]:
    return [int(index) for index in flags.nonzero()]


def _ranges(indices: Sequence[int]) -> str:
    """Format increasing integers as ranges, such as '0-3, 7', at most ten of them."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    text = ", ".join("-".join(map(str, run)) for run in runs[:10])
    return text if len(runs) <= 10 else f"{text}, … ({len(indices)} in all)"


def _integer(name: str, value: object) -> int:
    # `SupportsIndex` accepts NumPy's integers; a bool is an index too, but not a size.
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be made of integers, but {short_repr(value)} is a {type(value).__name__}")
    return value.__index__()


def _positive_integer(name: str, value: object) -> int:
    number = _integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be positive, but is {short_repr(number)}")
    return number


def _integers(name: str, values: object) -> list[int]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, but is {short_repr(values)}")
    return [_integer(name, value) for value in cast(Iterable[object], values)]


mask_filter_bank_bs_roformer_default: Tensor = mask_filter_bank_non_overlapping(DEFAULT_FREQS_PER_BANDS, 1025)
"""BS-RoFormer's layout for 1025 bins, boolean, `(62, 1025)`."""

_FIRST_BINS_MEL = (
    *(0, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37, 40, 43, 46, 49, 53, 56, 60, 65, 69, 74, 79, 84, 90, 97, 103),
    *(110, 118, 126, 135, 145, 155, 165, 177, 189, 203, 217, 232, 248, 265, 284, 304, 325, 348, 372, 398, 426, 455),
    *(487, 521, 558, 597, 638, 683, 731, 782, 836, 895),
)
_FREQS_PER_BANDS_MEL = (
    *(7, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 9, 9, 9, 10, 10, 11, 13, 13, 13, 15, 16, 17, 19, 20, 20),
    *(22, 24, 26, 28, 29, 31, 33, 36, 39, 41, 44, 47, 50, 54, 57, 61, 66, 71, 76, 80, 86, 93, 99, 105, 113, 122, 130),
)
mask_filter_bank_mel_band_default: Tensor = _mask_from_runs(_FIRST_BINS_MEL, _FREQS_PER_BANDS_MEL, 1025)
"""Mel-Band RoFormer's layout for 44.1 kHz audio, 1025 bins and 60 bands, boolean, `(60, 1025)`."""
