"""Groups of bands: every band and every column once, padded as little as promised, and back again."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from hunterFormsBS.kernels.bandGroups import BandGroups

CPU = torch.device("cpu")
widths_of_bands = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(tuple)


@given(widths_of_bands)
def test_groups_hold_every_band_once_and_none_twice_as_wide_as_another(widths: tuple[int, ...]) -> None:
    groups = BandGroups(widths)
    members = [groups.bands[group.bands] for group in groups.groups]
    assert sorted(band for bands in members for band in bands) == list(range(len(widths)))
    order, rank = (groups.indices.on(CPU, name) for name in ("order", "rank"))
    assert order.tolist() == groups.bands
    assert order[rank].tolist() == list(range(len(widths)))
    for group, bands in zip(groups.groups, members, strict=True):
        assert max(widths[band] for band in bands) == group.width <= 2 * min(widths[band] for band in bands)
    assert len(groups.groups) <= 1 + math.log2(max(widths) / min(widths))


@given(widths_of_bands)
def test_columns_pad_each_band_at_its_end_and_offsets_undo_it(widths: tuple[int, ...]) -> None:
    groups, total = BandGroups(widths), sum(widths)
    own = torch.arange(total).split(widths)
    columns, offsets = (groups.indices.on(CPU, name) for name in ("columns", "offsets"))
    for group in groups.groups:
        rows = columns[group.columns].unflatten(0, (-1, group.width))
        for row, band in zip(rows, groups.bands[group.bands], strict=True):
            assert row.tolist() == own[band].tolist() + [total] * (group.width - widths[band])
        for name, expected in (("widths", widths), ("padded_widths", [group.width] * len(widths))):
            numbers = groups.indices.on(CPU, name)[group.columns].unflatten(0, (-1, group.width))
            for row, band in zip(numbers, groups.bands[group.bands], strict=True):
                assert set(row.tolist()) == {expected[band]}
    assert columns[offsets].tolist() == list(range(total))


@given(widths_of_bands)
def test_gated_rows_keep_the_halves_of_a_band_apart(widths: tuple[int, ...]) -> None:
    gated_rows = (groups := BandGroups(widths)).indices.on(CPU, "gated_rows")
    # Rows as the layers have them: band by band, all values, then all gates.
    rows = [(band, half, c) for band, width in enumerate(widths) for half in range(2) for c in range(width)]
    for group in groups.groups:
        taken = gated_rows[2 * group.columns.start : 2 * group.columns.stop]
        for pair, band in zip(taken.unflatten(0, (-1, 2, group.width)), groups.bands[group.bands], strict=True):
            for half, numbers in enumerate(pair.tolist()):
                assert [rows[number] for number in numbers[: widths[band]]] == [
                    (band, half, c) for c in range(widths[band])
                ]
