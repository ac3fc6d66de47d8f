"""The band layout of a state dict, from what is stated in part."""

from __future__ import annotations

from typing import Any

import librosa
import numpy as np
import pytest
import torch

from hunterFormsBS.checkpoint import CheckpointError, from_configuration, infer_configuration, read_configuration
from hunterFormsBS.checkpoint.bands import find_mel_layout, resolve_bands

RATES = (44100, 48000, 32000, 24000, 22050, 16000, 96000)
TRANSFORMS = (2048, 4096, 1024, 8192, 512)


def mel_counts(sample_rate: float, stft_n_fft: int, num_bands: int) -> list[int]:
    mask = librosa.filters.mel(sr=sample_rate, n_fft=stft_n_fft, n_mels=num_bands) > 0
    mask[0, 0] = mask[-1, -1] = True
    return np.count_nonzero(mask, axis=1).tolist()


@pytest.mark.parametrize("stereo", [False, True])
def test_a_stated_mask_says_how_long_the_transform_is(overlapping_mask: torch.Tensor, stereo: bool) -> None:
    widths = [int(count) * (4 if stereo else 2) for count in overlapping_mask.sum(dim=1)]
    found = resolve_bands(widths, {"mask_filter_bank": overlapping_mask}, overlapping=True)
    assert found.arguments["stft_n_fft"] == 64
    assert found.arguments["stereo"] is stereo


@pytest.mark.parametrize(
    ("widths", "known", "assumed"),
    [
        ((4, 8, 16, 36), {}, True),  # 16 bins in stereo, or 32 in mono
        ((4, 8, 16, 36), {"stereo": True}, False),
        ((4, 8, 16, 36), {"stereo": False}, False),
        ((4, 8, 16, 40), {}, False),  # 17 bins in stereo: 34 in mono are those of no transform
        ((4, 8, 16, 38), {}, False),  # no multiple of four
    ],
)
def test_stereo_is_assumed_only_where_the_bins_leave_it_open(
    widths: tuple[int, ...], known: dict[str, Any], assumed: bool
) -> None:
    assert ("stereo" in resolve_bands(widths, known, overlapping=False).assumed) is assumed


@pytest.mark.filterwarnings("ignore:Empty filters:UserWarning")
@pytest.mark.parametrize("stft_n_fft", TRANSFORMS)
@pytest.mark.parametrize("sample_rate", RATES)
def test_every_usual_mel_layout_is_found_exactly(sample_rate: int, stft_n_fft: int) -> None:
    num_bands = 20 if stft_n_fft < 2048 else 60
    counts = mel_counts(sample_rate, stft_n_fft, num_bands)
    if 0 in counts:
        pytest.skip("some bands are empty")
    same = [(rate, n_fft) for rate in RATES for n_fft in TRANSFORMS if mel_counts(rate, n_fft, num_bands) == counts]
    assert same == [(sample_rate, stft_n_fft)]
    for stereo in (True, False):
        found = find_mel_layout([count * (4 if stereo else 2) for count in counts])
        assert found == (sample_rate, stft_n_fft, stereo)


def test_a_mono_mel_model_of_an_unusual_rate_is_told_to_be_mono_where_a_width_tells() -> None:
    stated = {"dim": 8, "depth": 1, "heads": 1, "dim_head": 4, "num_bands": 20, "sample_rate": 30000}
    counts = mel_counts(30000, 2048, 20)
    assert any(count % 2 for count in counts)
    weights = from_configuration({**stated, "stereo": False}).state_dict()
    inferred = infer_configuration(weights)
    assert inferred.arguments["stereo"] is False
    assert "stft_n_fft" in inferred.undetermined
    both = infer_configuration(from_configuration({**stated, "stereo": True}).state_dict())
    assert "stereo" in both.undetermined


@pytest.mark.parametrize("name", ["add_value_residual", "stft_window_function", "linear_flash_attn"])
def test_a_name_that_only_upstream_has_is_no_override(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'{name}' is not an argument of the model"):
        from_configuration({"dim": 8, "depth": 1}, **{name: True})


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path: Any, name: str) -> None:
    (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"model": {"dim": 8}}')
    assert read_configuration(tmp_path / name) == {"model": {"dim": 8}}
