"""Parts of songs: their samples are those of the whole, whatever lies between a song and its stems."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hunterFormsBS.failures import UsageError
from hunterFormsBS.parametersSeparation import ParametersSeparation
from hunterFormsBS.program.dispatch import understand
from hunterFormsBS.songs.graph import REST, Combination, Graph, Separator
from hunterFormsBS.songs.levels import loudest_part
from hunterFormsBS.songs.options import Options
from hunterFormsBS.songs.parts import Part, Region, clock, seconds
from hunterFormsBS.songs.reading import probe_audio
from hunterFormsBS.songs.separating import separate_song
from hunterFormsBS.songs.settings import Settings

SECONDS = 6


def model(audio: Tensor) -> Tensor:
    """Return two stems that depend on where in a chunk a sample is."""
    return torch.stack([torch.tanh(3 * audio * torch.linspace(-1, 1, audio.shape[-1])), audio * 0.3], dim=1)


def stems_of(song: Path, part: Part, *, rates: tuple[int, ...], kind: Any = "avg_wave", **keywords: Any) -> Tensor:
    normalize = keywords.pop("normalize", False)
    parameters = ParametersSeparation(chunk_size=4000, num_overlap=2, **keywords)
    separators = [Separator(model, Settings(rate, parameters, ["a", "b"], normalize)) for rate in rates]
    blocks = separate_song(Graph.of(separators, Combination(kind)).with_rests([REST]), probe_audio(song), part=part)
    return torch.cat(list(blocks), dim=-1)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    folder = tmp_path_factory.mktemp("songs")

    def song(rate: int) -> Path:
        path = folder / f"{rate}.wav"
        if not path.exists():
            samples = np.random.default_rng(1).uniform(-0.5, 0.5, (SECONDS * rate + 7, 2)).astype(np.float32)
            soundfile.write(path, samples, rate, subtype="FLOAT")
        return path

    return song


PARTS = [Part(0, 1.5), Part(2.3333, 4.1), Part(5.1234), Part(5.9, 99.0)]


@pytest.mark.parametrize(
    ("rate", "rates", "keywords"),
    [
        (8000, (8000,), {}),
        (8000, (8000,), {"blend": "msst", "batch_size": 2}),
        (8000, (8000,), {"blend": "pymss"}),
        (8000, (8000,), {"blend": "audio-separator"}),
        (8000, (8000,), {"shifts": 2}),
        (8000, (8000,), {"normalize": True}),
        (8000, (11025,), {}),
        (11025, (8000,), {}),
        (8000, (8000, 11025), {"kind": "median_wave"}),
        (8000, (8000, 11025), {"kind": "max_fft"}),
        (8000, (8000, 11025), {"kind": "uvr_max_spec"}),
    ],
    ids=str,
)
def test_the_samples_of_a_part_of_a_file_are_those_of_the_whole(
    songs: Callable[[int], Path], rate: int, rates: tuple[int, ...], keywords: dict[str, Any]
) -> None:
    whole = stems_of(songs(rate), Part(), rates=rates, **keywords)
    assert whole.shape == (3, 2, SECONDS * rate + 7)
    for part in PARTS:
        first, last = part.samples(rate)
        expected = whole[..., first : None if last == math.inf else int(last)]
        found = stems_of(songs(rate), part, rates=rates, **keywords)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", [6.001, 6.1, 70])
@pytest.mark.parametrize("rates", [(8000,), (11025,), (8000, 11025)])
def test_a_part_beyond_the_end_is_refused_with_both_times(
    songs: Callable[[int], Path], start: float, rates: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=f"the part begins at {clock(start)}, but the song ends at 0:06"):
        stems_of(songs(8000), Part(start), rates=rates, kind="avg_fft")


@given(
    first=st.integers(0, 10**7),
    size=st.integers(1, 10**6),
    rates=st.tuples(st.integers(8000, 96000), st.integers(8000, 96000)),
)
def test_a_region_begins_where_samples_of_both_rates_coincide_and_holds_the_part(
    first: int, size: int, rates: tuple[int, int]
) -> None:
    song, other = rates
    region = Region.around(first, first + size, song, other)
    begin = first - region.skip
    assert begin * other == region.start * song
    assert 0 <= begin <= first
    assert region.end is not None
    assert region.end * song >= (first + size) * other
    assert Region.around(first, math.inf, song, other).end is None


@pytest.mark.parametrize("cuts", [[], [1], [999, 1000, 7777]])
def test_the_loudest_part_is_the_one_with_the_most_energy(cuts: list[int]) -> None:
    rate = 100
    song = torch.rand(2, 10000, generator=torch.Generator().manual_seed(0)) * 0.1
    song[1, 4500:5500] += 0.3
    blocks = torch.tensor_split(song, cuts, dim=-1)
    found = loudest_part(blocks, rate, duration=20)
    energy = [float(song[:, start : start + 2000].square().sum()) for start in range(0, 8001, 10)]
    assert found == Part(np.argmax(energy) / 10, np.argmax(energy) / 10 + 20)
    assert loudest_part([song[:, :700]], rate, duration=20) == Part(0, 20)
    assert loudest_part([torch.zeros(1, 5)], rate) == Part(0, 30)


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("1:30", 90), ("0:01:30.5", 90.5), ("1:2:3", 3723), ("0", 0), ("75:00", 4500)]
)
def test_times_are_seconds_or_minutes_and_seconds(text: str, expected: float) -> None:
    assert seconds(text) == expected
    assert seconds(clock(expected)) == expected


@pytest.mark.parametrize("text", ["", "-1", "1:-3", "a", "1:2:3:4", "nan", "1e3", "1 30", "1:", ":3", "٣"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be seconds or m:ss"):
        seconds(text)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Part()),
        (["--start", "1:30"], Part(90)),
        (["--start", "5", "--duration", "2.5"], Part(5, 7.5)),
        (["--end", "1:00"], Part(0, 60)),
        (["--preview"], None),
    ],
)
def test_options_name_a_part(arguments: list[str], expected: Part | None) -> None:
    assert Options(**vars(understand(arguments).options)).part() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--end", "5", "--duration", "3"], "--end and --duration exclude each other"),
        (["--preview", "--end", "3"], "--end and --preview exclude each other"),
        (["--preview", "--start", "0"], "--preview finds its beginning"),
        (["--start", "1:30", "--end", "1:30"], "would end at 1:30 and begin at 1:30"),
        (["--duration", "0"], "would end at 0:00 and begin at 0:00"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(**vars(understand(arguments).options)).part()
