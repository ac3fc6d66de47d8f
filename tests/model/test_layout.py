"""Band layouts against librosa, naive loops and closed forms."""

import math
import re
import sys
import warnings
from fractions import Fraction
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hunterFormsBS.blocks import layout
from hunterFormsBS.blocks.layout import (
    DEFAULT_FREQS_PER_BANDS,
    is_overlapping,
    mask_filter_bank_bs_roformer_default,
    mask_filter_bank_mel,
    mask_filter_bank_mel_band_default,
    mask_filter_bank_non_overlapping,
    resolve_freq_range,
    resolve_mask_filter_bank,
)


def resolve(num_freqs: int, **arguments: Any) -> Tensor:
    defaults: dict[str, Any] = {
        "stft_n_fft": 2 * (num_freqs - 1),
        "mask_filter_bank": None,
        "sample_rate": None,
        "num_bands": None,
        "freqs_per_bands": DEFAULT_FREQS_PER_BANDS,
        "freq_range": None,
    }
    return resolve_mask_filter_bank(num_freqs=num_freqs, **(defaults | arguments))


def librosa_mask(sample_rate: float, stft_n_fft: int, num_bands: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Empty filters")
        mask = torch.from_numpy(librosa.filters.mel(sr=sample_rate, n_fft=stft_n_fft, n_mels=num_bands) > 0)
    mask[0, 0] = True
    mask[-1, -1] = True
    return mask


def naive_mask(freqs_per_bands: list[int], num_freqs: int, low: int) -> list[list[bool]]:
    rows: list[list[bool]] = []
    for count in freqs_per_bands:
        rows.append([low <= freq < low + count for freq in range(num_freqs)])
        low += count
    return rows


def as_ranges(indices: list[int]) -> str:
    """Write sorted integers as ranges with a regular expression over a string of flags."""
    flags = "".join("x" if index in indices else "." for index in range(max(indices) + 1))
    spans = [(found.start(), found.end() - 1) for found in re.finditer("x+", flags)]
    shown = [f"{first}-{last}" if last > first else f"{first}" for first, last in spans[:10]]
    return ", ".join(shown) + (f", … ({len(indices)} in all)" if len(spans) > 10 else "")


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    num_bands, num_freqs = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    row = st.lists(st.booleans(), min_size=num_freqs, max_size=num_freqs)
    return torch.tensor(draw(st.lists(row, min_size=num_bands, max_size=num_bands)), dtype=torch.bool)


# Bands side by side


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 5), st.integers(0, 5))
def test_non_overlapping_bands_lie_side_by_side_from_the_lowest_bin_of_the_range(
    freqs_per_bands: list[int], below: int, above: int
) -> None:
    high = below + sum(freqs_per_bands)
    mask = mask_filter_bank_non_overlapping(freqs_per_bands, high + above, (below, high))
    assert mask.dtype == torch.bool
    assert mask.tolist() == naive_mask(freqs_per_bands, high + above, below)
    assert not is_overlapping(mask)


def test_default_non_overlapping_layout_is_that_of_bs_roformer() -> None:
    widths = [2] * 24 + [4] * 12 + [12] * 8 + [24] * 8 + [48] * 8 + [128, 129]
    assert list(DEFAULT_FREQS_PER_BANDS) == widths
    assert mask_filter_bank_bs_roformer_default.tolist() == naive_mask(widths, 1025, 0)


def test_counts_that_do_not_sum_to_the_bins_are_refused_with_both_sums() -> None:
    with pytest.raises(ValueError, match="3 values of freqs_per_bands sum to 9, but must sum to the 10 freq"):
        mask_filter_bank_non_overlapping((2, 3, 4), 10)


def test_counts_that_do_not_sum_to_the_bins_within_freq_range_are_refused_with_both_sums() -> None:
    with pytest.raises(ValueError, match=r"sum to 10, but must sum to the 6 frequency bins that freq_range=\(3, 9\)"):
        mask_filter_bank_non_overlapping((3, 7), 10, (3, 9))


@pytest.mark.parametrize("freqs_per_bands", [(), (3, 0, 2), (6, -1)])
def test_counts_that_are_not_positive_are_refused(freqs_per_bands: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"freqs_per_bands .* each at least 1"):
        mask_filter_bank_non_overlapping(freqs_per_bands, 5)


@pytest.mark.parametrize("freqs_per_bands", [5, None, "23", (2.0, 3.0), (True, 4), ("2", "3")])
def test_counts_that_are_not_integers_are_refused(freqs_per_bands: Any) -> None:
    with pytest.raises(TypeError, match="freqs_per_bands must be"):
        mask_filter_bank_non_overlapping(freqs_per_bands, 5)


def test_counts_may_be_integers_of_numpy_or_torch() -> None:
    expected = naive_mask([2, 3], 5, 0)
    assert mask_filter_bank_non_overlapping(np.array([2, 3]), 5).tolist() == expected  # type: ignore[arg-type]
    assert mask_filter_bank_non_overlapping(torch.tensor([2, 3]), 5).tolist() == expected  # type: ignore[arg-type]


# Mel bands


def check_mel(sample_rate: float, stft_n_fft: int, num_bands: int) -> None:
    setting = (sample_rate, stft_n_fft, num_bands)
    expected = librosa_mask(*setting)
    made = layout._mask_mel(*setting)  # pyright: ignore[reportPrivateUsage]
    assert torch.equal(made, expected), setting
    empty = (~expected.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        message = f"bands {as_ranges(empty)} of the mel layout contain no bin"
        with pytest.raises(ValueError, match=re.escape(message)):
            mask_filter_bank_mel(*setting)
    else:
        assert torch.equal(mask_filter_bank_mel(*setting), expected), setting


@pytest.mark.parametrize("num_bands", [4, 7, 24, 40, 60, 64, 77, 96, 128])
@pytest.mark.parametrize(
    "sample_rate", [8000, 11025, 12345, 16000, 22050, 32000, 37800, 44056, 44100, 48000, 88200, 96000, 176400, 192000]
)
def test_mel_layout_equals_librosa(sample_rate: int, num_bands: int) -> None:
    for stft_n_fft in (256, 441, 1000, 1024, 1323, 2048, 4096, 6000, 8191, 8192):
        check_mel(sample_rate, stft_n_fft, num_bands)


@pytest.mark.parametrize("sample_rate", [12800, 81920, 2000, 1600])
def test_mel_layout_equals_librosa_where_corners_fall_on_bins(sample_rate: int) -> None:
    # Up to 1 kHz the corners of these rates are rational numbers, so that the last bit of each decides.
    for stft_n_fft in (256, 512, 1000, 1280):
        for num_bands in (*range(1, 30), 41, 62, 83, 125):
            check_mel(sample_rate, stft_n_fft, num_bands)


@given(st.integers(8000, 192000), st.integers(256, 4096), st.integers(1, 128))
def test_mel_layout_equals_librosa_for_any_setting(sample_rate: int, stft_n_fft: int, num_bands: int) -> None:
    check_mel(sample_rate, stft_n_fft, num_bands)


def test_mel_bands_hold_the_bins_strictly_inside_their_triangles() -> None:
    # 6.4 kHz is 6.4 times 1 kHz, at 15 + 27 mel: 28 steps of 1.5 mel, which are 100 Hz each up to 1 kHz.
    hz = [Fraction(12800 * freq, 254) for freq in range(128)]
    mask = mask_filter_bank_mel(12800, 254, 27)
    for band in range(1, 9):
        inside = [100 * band < frequency < 100 * (band + 2) for frequency in hz]
        assert mask[band].tolist() == inside
    assert mask[0].tolist() == [frequency < 200 for frequency in hz]


def test_bundled_mel_layout_equals_the_computed_one_and_that_of_librosa() -> None:
    assert torch.equal(mask_filter_bank_mel_band_default, librosa_mask(44100, 2048, 60))
    assert torch.equal(mask_filter_bank_mel_band_default, mask_filter_bank_mel(44100, 2048, 60))


def test_mel_layout_needs_no_librosa(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = librosa_mask(48000, 1024, 30)
    monkeypatch.setitem(sys.modules, "librosa", None)
    assert torch.equal(mask_filter_bank_mel(48000, 1024, 30), expected)


@pytest.mark.parametrize(
    ("sample_rate", "stft_n_fft", "num_bands"), [(44100, 256, 60), (192000, 256, 128), (8000, 2, 9)]
)
def test_number_of_bands_that_the_mel_error_suggests_fits_and_one_more_does_not(
    sample_rate: int, stft_n_fft: int, num_bands: int
) -> None:
    with pytest.raises(ValueError, match=r"use a larger stft_n_fft, or fewer bands") as raised:
        mask_filter_bank_mel(sample_rate, stft_n_fft, num_bands)
    suggested = int(str(raised.value).rpartition("num_bands=")[2])
    assert librosa_mask(sample_rate, stft_n_fft, suggested).any(dim=1).all()
    assert not librosa_mask(sample_rate, stft_n_fft, suggested + 1).any(dim=1).all()
    with pytest.raises(ValueError, match=rf"for example num_bands={suggested}$"):
        mask_filter_bank_mel(sample_rate, stft_n_fft, suggested + 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 2048, 60), ValueError, "sample_rate must be positive and finite, but is 0"),
        ((-44100, 2048, 60), ValueError, "sample_rate must be positive and finite, but is -44100"),
        ((math.nan, 2048, 60), ValueError, "sample_rate must be positive and finite, but is nan"),
        (("44100", 2048, 60), TypeError, "sample_rate must be a number"),
        ((True, 2048, 60), TypeError, "sample_rate must be a number"),
        ((44100, 0, 60), ValueError, "stft_n_fft must be positive, but is 0"),
        ((44100, 2048, 0), ValueError, "num_bands must be positive, but is 0"),
        ((44100, 2048, 60.0), TypeError, "num_bands must be"),
    ],
)
def test_mel_arguments_that_make_no_sense_are_refused(
    arguments: tuple[Any, Any, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mask_filter_bank_mel(*arguments)


# Which layout a model's arguments describe


def test_given_mask_comes_before_the_mel_layout_and_the_mel_layout_before_the_counts() -> None:
    mask = torch.ones(60, 1025, dtype=torch.bool)
    both: dict[str, Any] = {"sample_rate": 44100, "num_bands": 60}
    assert torch.equal(resolve(1025, mask_filter_bank=mask, **both), mask)
    assert torch.equal(resolve(1025, **both), librosa_mask(44100, 2048, 60))
    assert torch.equal(resolve(1025), mask_filter_bank_bs_roformer_default)


@pytest.mark.parametrize("setting", [(48000, 2048, 60), (44100, 1024, 40), (44100, 2048, 64)])
def test_mel_layout_of_other_settings_is_computed(setting: tuple[int, int, int]) -> None:
    sample_rate, stft_n_fft, num_bands = setting
    made = resolve(stft_n_fft // 2 + 1, stft_n_fft=stft_n_fft, sample_rate=sample_rate, num_bands=num_bands)
    assert torch.equal(made, librosa_mask(*setting))


def test_sample_rate_alone_leaves_the_layout_as_it_is() -> None:
    assert torch.equal(resolve(1025, sample_rate=48000), mask_filter_bank_bs_roformer_default)


def test_sample_rate_that_is_no_rate_is_refused_whatever_the_layout() -> None:
    with pytest.raises(ValueError, match="sample_rate must be positive and finite, but is -1"):
        resolve(1025, sample_rate=-1)


def test_num_bands_alone_must_be_that_of_the_counts() -> None:
    assert torch.equal(resolve(1025, num_bands=62), mask_filter_bank_bs_roformer_default)
    with pytest.raises(ValueError, match=r"num_bands=60 disagrees with the 62 bands of freqs_per_bands: .*sample_rate"):
        resolve(1025, num_bands=60)


def test_num_bands_must_agree_with_a_given_mask() -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    assert torch.equal(resolve(5, mask_filter_bank=mask, num_bands=3), mask)
    with pytest.raises(ValueError, match="num_bands=4 disagrees with the 3 bands of mask_filter_bank"):
        resolve(5, mask_filter_bank=mask, num_bands=4, sample_rate=44100)


def test_default_counts_for_another_number_of_bins_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sum to 1025, but must sum to the 513 frequency bins"):
        resolve(513)


@pytest.mark.parametrize(
    "arguments", [{"mask_filter_bank": torch.ones(2, 5, dtype=torch.bool)}, {"sample_rate": 8000, "num_bands": 1}]
)
def test_counts_that_another_layout_overrules_are_named_in_a_warning(arguments: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="freqs_per_bands is not used: "):
        resolve(5, freqs_per_bands=(2, 3), **arguments)


def test_counts_that_agree_with_a_given_mask_are_no_reason_to_warn(recwarn: pytest.WarningsRecorder) -> None:
    mask = mask_filter_bank_non_overlapping((2, 3), 5)
    assert torch.equal(resolve(5, freqs_per_bands=(2, 3), mask_filter_bank=mask), mask)
    assert not recwarn.list


@given(masks())
def test_given_mask_is_taken_as_it_is_or_refused_by_the_bands_and_bins_that_are_missing(mask: Tensor) -> None:
    num_bands, num_freqs = mask.shape
    rows: list[list[bool]] = mask.tolist()
    empty = [band for band in range(num_bands) if not any(rows[band])]
    uncovered = [freq for freq in range(num_freqs) if not any(row[freq] for row in rows)]
    if empty:
        with pytest.raises(ValueError, match=rf"bands {as_ranges(empty)} of {num_bands} contain no bin: "):
            resolve(num_freqs, mask_filter_bank=mask)
    elif uncovered:
        with pytest.raises(ValueError, match=rf"bins {as_ranges(uncovered)} of {num_freqs} belong to no band: "):
            resolve(num_freqs, mask_filter_bank=mask)
    else:
        assert torch.equal(resolve(num_freqs, mask_filter_bank=mask), mask)


@given(masks(), st.data())
def test_bins_outside_freq_range_are_in_no_band_and_bins_inside_stay_as_they_are(
    mask: Tensor, data: st.DataObject
) -> None:
    num_bands, num_freqs = mask.shape
    low = data.draw(st.integers(0, num_freqs - 1))
    high = data.draw(st.integers(low + 1, num_freqs))
    mask[data.draw(st.integers(0, num_bands - 1))] = True
    expected = [[value and low <= freq < high for freq, value in enumerate(row)] for row in mask.tolist()]
    if all(any(row) for row in expected):
        assert resolve(num_freqs, mask_filter_bank=mask, freq_range=(low, high)).tolist() == expected
    else:
        with pytest.raises(ValueError, match=r"contain no bin"):
            resolve(num_freqs, mask_filter_bank=mask, freq_range=(low, high))


def test_mel_layout_is_cut_to_freq_range() -> None:
    made = resolve(1025, sample_rate=44100, num_bands=60, freq_range=(2, 1000))
    expected = librosa_mask(44100, 2048, 60)
    expected[:, :2] = False
    expected[:, 1000:] = False
    assert torch.equal(made, expected)


def test_bands_that_freq_range_leaves_empty_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"bands 0-1 of 60 contain no bin inside freq_range=\(10, 1025\): widen"):
        resolve(1025, sample_rate=44100, num_bands=60, freq_range=(10, -1))


def test_many_uncovered_bins_are_named_up_to_the_tenth_run() -> None:
    mask = torch.ones(1, 50, dtype=torch.bool)
    mask[0, 1::2] = False
    with pytest.raises(ValueError, match=r"bins 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, … \(25 in all\) of 50 belong"):
        resolve(50, mask_filter_bank=mask)


def test_bins_that_are_uncovered_inside_freq_range_are_refused() -> None:
    mask = mask_filter_bank_non_overlapping((3, 4, 3), 10)
    mask[1, 4] = False
    with pytest.raises(ValueError, match=r"bins 4 of 10 belong to no band inside freq_range=\(2, 9\): "):
        resolve(10, mask_filter_bank=mask, freq_range=(2, 9))


def test_layout_shares_no_memory_with_what_it_was_made_from() -> None:
    given_mask = torch.ones(2, 5, dtype=torch.bool)
    resolve(5, mask_filter_bank=given_mask).zero_()
    resolve(1025, sample_rate=44100, num_bands=60).zero_()
    resolve(1025).zero_()
    assert given_mask.all()
    assert mask_filter_bank_mel_band_default.any()
    assert mask_filter_bank_bs_roformer_default.any()


@pytest.mark.parametrize(
    "arguments", [{}, {"sample_rate": 44100, "num_bands": 60}, {"sample_rate": 48000, "num_bands": 9}]
)
def test_layout_is_made_on_the_cpu_whatever_the_default_device(arguments: dict[str, Any]) -> None:
    expected = resolve(1025, **arguments)
    with torch.device("meta"):
        made = resolve(1025, **arguments)
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 5), TypeError, "boolean tensor .* but is torch.float32: pass"),
        (torch.ones(2, 5, dtype=torch.uint8), TypeError, "boolean tensor .* but is torch.uint8: pass"),
        ([[True] * 5], TypeError, "boolean tensor .* but is list: pass"),
        (np.ones((2, 5), dtype=bool), TypeError, "boolean tensor .* but is ndarray: pass"),
        (torch.ones(2, 5, dtype=torch.bool).to_sparse(), TypeError, "dense one that holds values"),
        (torch.ones(2, 5, dtype=torch.bool, device="meta"), TypeError, "dense one that holds values"),
        (torch.ones(5, dtype=torch.bool), ValueError, r"has the shape \(5,\)"),
        (torch.ones(1, 2, 5, dtype=torch.bool), ValueError, r"has the shape \(1, 2, 5\)"),
        (torch.ones(0, 5, dtype=torch.bool), ValueError, r"has the shape \(0, 5\)"),
        (torch.ones(2, 6, dtype=torch.bool), ValueError, "has 6 columns, but there are 5 frequency bins"),
    ],
)
def test_mask_of_the_wrong_kind_or_width_is_refused(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(5, mask_filter_bank=mask)


# Ranges of bins


@given(st.integers(1, 50), st.data())
def test_freq_range_ends_at_the_first_and_last_bin_where_it_is_open(num_freqs: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, num_freqs - 1))
    high = data.draw(st.integers(low + 1, num_freqs))
    assert resolve_freq_range((low, high), num_freqs) == (low, high)
    assert resolve_freq_range((low, -1), num_freqs) == (low, num_freqs)
    assert resolve_freq_range((-1, high), num_freqs) == (0, high)
    assert resolve_freq_range((-1, -1), num_freqs) == resolve_freq_range(None, num_freqs) == (0, num_freqs)


@pytest.mark.parametrize("freq_range", [(-2, 5), (3, 3), (5, 3), (0, 11), (10, -1), (-1, 0), (3, -2)])
def test_freq_range_outside_the_bins_or_without_any_is_refused(freq_range: tuple[int, int]) -> None:
    message = f"freq_range={freq_range} must satisfy 0 <= low < high <= 10, the number of bins: pass (low, high)"
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_freq_range(freq_range, 10)


@pytest.mark.parametrize("freq_range", [5, "ab", (1.0, 5.0), (None, 5), (False, True)])
def test_freq_range_that_is_not_made_of_integers_is_refused(freq_range: Any) -> None:
    with pytest.raises(TypeError, match="freq_range must be"):
        resolve_freq_range(freq_range, 10)


@pytest.mark.parametrize("freq_range", [(), (3,), (1, 2, 3)])
def test_freq_range_that_is_no_pair_is_refused(freq_range: Any) -> None:
    with pytest.raises(ValueError, match="freq_range must be two integers"):
        resolve_freq_range(freq_range, 10)


# Overlap


@given(masks())
def test_layout_overlaps_where_two_bands_share_a_bin(mask: Tensor) -> None:
    num_bands, num_freqs = mask.shape
    rows: list[list[bool]] = mask.tolist()
    shared = [
        freq
        for freq in range(num_freqs)
        for band in range(num_bands)
        for other in range(band)
        if rows[band][freq] and rows[other][freq]
    ]
    assert is_overlapping(mask) == bool(shared)


def test_default_mel_layout_overlaps_and_the_default_of_bs_roformer_does_not() -> None:
    assert is_overlapping(mask_filter_bank_mel_band_default)
    assert not is_overlapping(mask_filter_bank_bs_roformer_default)
