"""What a configuration says about separating, and which stems the command line means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.choices import LAYOUTS, Layout
from hunterFormsBS.failures import UsageError
from hunterFormsBS.parametersSeparation import ParametersSeparation
from hunterFormsBS.songs.settings import find_configuration, read_settings, stated_separation, stem_indices
from tests.models import TINY

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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_what_is_saved_with_a_model_is_how_songs_are_separated_with_it(
    tmp_path: Path, layout: Layout, suffix: str
) -> None:
    sections = {
        "audio": {"chunk_size": 44100, "sample_rate": 22050},
        "training": {"instruments": ["Piano", "everything else"], "target_instrument": None},
        "inference": {"num_overlap": 3, "normalize": True},
    }
    path = tmp_path / f"model{suffix}"
    model = BandSplitRotator(**TINY | {"num_stems": 2, "zero_dc": True})
    save_checkpoint(path, model, configuration=sections, layout=layout)
    beside = path.with_suffix(".yaml") if layout == "msst" else None
    file, used, content = find_configuration(path, beside)
    settings, remarks = read_settings(content)
    assert (file, used, remarks) == (path, beside, [])
    assert settings.names == ["Piano", "everything else"]
    assert (settings.sample_rate, settings.normalize) == (22050, True)
    assert (settings.parameters.chunk_size, settings.parameters.num_overlap) == (44100, 3)
    assert from_checkpoint(file, used).configuration["zero_dc"]
