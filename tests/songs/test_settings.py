"""What a configuration says about separating, and which stems the command line means."""

from __future__ import annotations

from typing import Any

import pytest

from hunterFormsBS.failures import UsageError
from hunterFormsBS.parametersSeparation import ParametersSeparation
from hunterFormsBS.songs.settings import stated_separation, stem_indices

STEMS = ["vocals", "Drums", "Bass Guitar"]


@pytest.mark.parametrize("wanted", [["Vocals"], ["VOCALS"], ["vocals"]])
def test_stems_are_found_whatever_their_case(wanted: list[str]) -> None:
    assert stem_indices(wanted, STEMS) == [0]
    assert stem_indices(["bass guitar", "drums"], STEMS) == [2, 1]


def test_a_stem_that_nearly_exists_is_answered_with_the_one_that_does() -> None:
    with pytest.raises(UsageError, match=r"no stem vocal, but vocals, Drums, Bass Guitar; is vocals meant\?"):
        stem_indices(["vocal"], STEMS)
    with pytest.raises(UsageError, match=r"no stem x, but vocals, Drums, Bass Guitar$"):
        stem_indices(["x"], STEMS)


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ({"inference": {"dim_t": 801}, "model": {"stft_hop_length": 441}}, 800 * 441),
        ({"inference": {"dim_t": 256}, "audio": {"hop_length": 1024}}, 255 * 1024),
        ({"inference": {"dim_t": 801, "chunk_size": 100_000}, "model": {"stft_hop_length": 441}}, 100_000),
        ({"inference": {"dim_t": 801}, "audio": {"chunk_size": 200_000, "hop_length": 441}}, 200_000),
        ({"inference": {"dim_t": 801}}, None),
    ],
)
def test_frames_of_a_chunk_tell_its_length_where_nothing_else_does(
    configuration: dict[str, Any], expected: int | None
) -> None:
    stated = ParametersSeparation(**stated_separation(configuration))
    assert stated.chunk_size == (ParametersSeparation.chunk_size if expected is None else expected)
