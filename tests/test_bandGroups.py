"""Groups of bands: every band and every column once, padded as little as promised, and back again."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hunterFormsBS.kernels.bandGroups import BandGroups

widths_of_bands = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(tuple)


@given(widths_of_bands)
def test_groups_hold_every_band_once_and_none_twice_as_wide_as_another(widths: tuple[int, ...]) -> None:
    groups = BandGroups(widths)
    members = [groups.bands[group.bands] for group in groups.groups]
    assert sorted(band for bands in members for band in bands) == list(range(len(widths)))
    assert groups.order.tolist() == groups.bands
    assert groups.order[groups.rank].tolist() == list(range(len(widths)))
    for group, bands in zip(groups.groups, members, strict=True):
        assert max(widths[band] for band in bands) == group.width <= 2 * min(widths[band] for band in bands)
    assert len(groups.groups) <= 1 + math.log2(max(widths) / min(widths))


@given(widths_of_bands)
def test_columns_pad_each_band_at_its_end_and_places_undo_it(widths: tuple[int, ...]) -> None:
    groups, total = BandGroups(widths), sum(widths)
    own = torch.arange(total).split(widths)
    for group in groups.groups:
        rows = groups.columns[group.columns].unflatten(0, (-1, group.width))
        for row, band in zip(rows, groups.bands[group.bands], strict=True):
            assert row.tolist() == own[band].tolist() + [total] * (group.width - widths[band])
        for name, expected in (("widths", widths), ("padded_widths", [group.width] * len(widths))):
            numbers = getattr(groups, name)[group.columns].unflatten(0, (-1, group.width))
            for row, band in zip(numbers, groups.bands[group.bands], strict=True):
                assert set(row.tolist()) == {expected[band]}
    assert groups.columns[groups.places].tolist() == list(range(total))


@given(widths_of_bands)
def test_gated_rows_keep_the_halves_of_a_band_apart(widths: tuple[int, ...]) -> None:
    groups = BandGroups(widths)
    # Rows as the layers have them: band by band, all values, then all gates.
    rows = [(band, half, c) for band, width in enumerate(widths) for half in range(2) for c in range(width)]
    for group in groups.groups:
        taken = groups.gated_rows[2 * group.columns.start : 2 * group.columns.stop]
        for pair, band in zip(taken.unflatten(0, (-1, 2, group.width)), groups.bands[group.bands], strict=True):
            for half, numbers in enumerate(pair.tolist()):
                assert [rows[number] for number in numbers[: widths[band]]] == [
                    (band, half, c) for c in range(widths[band])
                ]


def test_indices_are_in_no_state_dict_and_survive_to_empty() -> None:
    groups, expected = BandGroups((3, 1, 7)), BandGroups((3, 1, 7))
    assert groups.state_dict() == {}
    groups = groups.to("meta").to_empty(device="cpu")
    groups.load_state_dict({})
    for name, index in expected.named_buffers():
        assert torch.equal(getattr(groups, name), index)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_indices_stay_whole_numbers(dtype: torch.dtype) -> None:
    assert {index.dtype for index in BandGroups((3, 1)).to(dtype).buffers()} == {torch.int64}


def test_indices_are_real_also_when_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        groups = BandGroups((3, 1))
    assert groups.order.tolist() == [0, 1]
