"""Loudness by its standard, and the parts where a stem sounds."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hunterFormsBS.songs.levels import loudness, sounding_parts
from hunterFormsBS.songs.writing import Level

RATE = 8000


def sine(decibels: float, rate: int, seconds: float, channels: int = 2) -> Tensor:
    t = torch.arange(int(rate * seconds), dtype=torch.float64) / rate
    return (10 ** (decibels / 20) * torch.sin(2 * torch.pi * 1000 * t)).float().expand(channels, -1)


@pytest.mark.parametrize("rate", [22050, 44100, 48000, 96000])
def test_loudness_is_that_of_the_tones_of_ebu_tech_3341(rate: int) -> None:
    # Test cases 1, 2 and 3: gates leave out what is silent between.
    assert loudness([sine(-23, rate, 5)], rate, 2) == pytest.approx(-23, abs=0.1)
    assert loudness([sine(-33, rate, 5)], rate, 2) == pytest.approx(-33, abs=0.1)
    third = torch.cat([sine(-36, rate, 3), sine(-23, rate, 18), sine(-36, rate, 3)], dim=-1)
    assert loudness(torch.split(third, 30_011, dim=-1), rate, 2) == pytest.approx(-23, abs=0.1)


def test_one_channel_is_three_decibels_below_two_and_silence_has_no_loudness() -> None:
    assert loudness([sine(-20, 48000, 3, 1)], 48000, 1) == pytest.approx(-23, abs=0.1)
    for samples in (100, 200_000):
        assert loudness([torch.zeros(2, samples)], 48000, 2) <= -70


def test_parts_are_where_a_stem_is_above_the_threshold() -> None:
    stem = torch.zeros(2, 10 * RATE)
    stem[:, RATE : 2 * RATE] = 0.1
    stem[:, int(2.3 * RATE) : 3 * RATE] = 0.1  # after a short pause
    stem[0, 5 * RATE : 6 * RATE] = 1.0  # in one of two channels
    stem[:, -RATE // 20 :] = 0.5  # half a step at the end
    first, second, last = sounding_parts([stem], RATE)
    assert first[:2] == (1.0, 3.0)
    assert first.decibels == pytest.approx(-20 + 10 * math.log10(17 / 20), abs=0.05)
    assert second == (5.0, 6.0, pytest.approx(-3.01, abs=0.05))
    assert last[:2] == (9.9, 10.0)
    assert [part[:2] for part in sounding_parts([stem], RATE, -15.0)] == [(5.0, 6.0), (9.9, 10.0)]
    assert sounding_parts([torch.zeros(1, 0)], RATE) == []


@settings(max_examples=50)
@given(ends=st.lists(st.integers(0, 3000), max_size=6), seed=st.integers(0, 9))
def test_blocks_do_not_show_in_the_parts(ends: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.rand(30, generator=generator).pow(8).repeat_interleave(100)
    stem = (torch.rand(2, 3000, generator=generator) - 0.5) * levels
    cuts = [0, *sorted(ends), 3000]
    blocks = [stem[:, start:end] for start, end in pairwise(cuts)]
    assert sounding_parts(blocks, 1000, -30.0) == sounding_parts([stem], 1000, -30.0)


@pytest.mark.parametrize(
    ("level", "peak", "measured", "factor"),
    [
        (Level(), 2.0, -10.0, 1.0),
        (Level(peak=-6.0), 0.1, -10.0, 10 ** (-6 / 20) / 0.1),
        (Level(lufs=-14.0), 0.5, -20.0, 10 ** (6 / 20)),
        (Level(lufs=-14.0, at_most=0.0), 0.8, -20.0, 1 / 0.8),
        (Level(at_most=0.0), 4.0, -20.0, 0.25),
        (Level(at_most=0.0), 0.5, -20.0, 1.0),
        (Level(peak=-1.0), 0.0, -70.0, 1.0),
        (Level(lufs=-14.0), 0.0, -70.0, 1.0),
    ],
)
def test_one_factor_follows_from_peak_loudness_and_full_scale(
    level: Level, peak: float, measured: float, factor: float
) -> None:
    assert level.factor(peak, lambda: measured) == pytest.approx(factor)
