"""Graphs of steps, side by side and one model at a time: each step as if it had been run by itself on a file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from hunterFormsBS.choices import ENSEMBLES
from hunterFormsBS.parametersSeparation import ParametersSeparation
from hunterFormsBS.songs import reading
from hunterFormsBS.songs.graph import ALL, REST, Combination, Graph, Separator, Signal, Step
from hunterFormsBS.songs.parts import Part
from hunterFormsBS.songs.reading import probe_audio, read_audio
from hunterFormsBS.songs.separating import separate_song
from hunterFormsBS.songs.settings import Settings

RATE = 8000


def model(seed: int, stems: int, audio: Tensor) -> Tensor:
    """Return stems that depend on the level and on where in a chunk a sample is."""
    slopes = torch.linspace(-1, 1, stems + 1)[1:, None, None] * torch.linspace(0.5, 1, audio.shape[-1])
    return torch.stack([torch.tanh((seed % 3 + 1) * audio * slope) * 0.8 for slope in slopes], dim=1)


def random_separator(dice: random.Random, stems: int, *, may_normalize: bool) -> Separator:
    parameters = ParametersSeparation(
        chunk_size=dice.choice([500, 1000, 1777]),
        num_overlap=dice.choice([1, 1.5, 2, 3]),
        batch_size=dice.choice([1, 2, 3]),
        blend=dice.choice(["smooth", "smooth", "msst"]),
        shifts=dice.choice([1] * 7 + [2]),
    )
    names = [f"stem_{number}" for number in range(stems)]
    settings = Settings(
        dice.choice([RATE] * 3 + [6000, 11025]), parameters, names, may_normalize and dice.random() < 0.2
    )
    return Separator(partial(model, dice.randrange(9), stems), settings)


def random_graph(dice: random.Random, *, normalizing: bool, ensembles: Sequence[str] = ENSEMBLES) -> Graph:
    """Return up to six steps, each on the mixture, or on a stem or the rest of any earlier one."""
    steps: list[Step] = []
    counts: list[int] = []
    outputs: list[Signal] = []
    for number in range(dice.randint(1, 6)):
        stems = dice.randint(1, 3)
        source = None
        if number and dice.random() < 0.8:
            before = dice.randrange(number)
            source = Signal(before, dice.choice([*range(counts[before]), REST]))
        members = dice.choice([1, 1, 2])
        separators = [random_separator(dice, stems, may_normalize=normalizing) for _ in range(members)]
        steps.append(Step(separators, Combination(dice.choice(ensembles)), source))  # type: ignore[arg-type]
        counts.append(stems)
        outputs += [Signal(number, stem) for stem in [*range(stems), REST, ALL] if dice.random() < 0.5]
    unread = {*range(len(steps))} - {signal.step for signal in outputs}
    return Graph(steps, [*outputs, *(Signal(number, REST) for number in sorted(unread))])


def write(path: Path, samples: Tensor | np.ndarray) -> Path:
    soundfile.write(path, np.asarray(samples).T, RATE, subtype="FLOAT")
    return path


def by_single_calls(graph: Graph, song: Path, folder: Path) -> list[Tensor]:
    """Return all stems and the rest of each step, run by itself on the file of its input."""
    given: list[Tensor] = []
    for number, step in enumerate(graph.steps):
        path = song
        if step.source is not None:
            stem = -1 if step.source.stem == REST else step.source.stem
            path = write(folder / f"{number}.wav", given[step.source.step][stem])
        alone = Graph.of(step.separators, step.combination).with_rests([REST])
        given.append(torch.cat(list(separate_song(alone, probe_audio(path))), dim=-1))
    return given


def outputs_of(graph: Graph, given: Sequence[Tensor]) -> Tensor:
    rows = {ALL: slice(None, -1), REST: slice(-1, None)}
    return torch.cat([given[step][rows.get(stem, [stem])] for step, stem in graph.outputs])  # type: ignore[index]


def run(graph: Graph, song: Path, **keywords: Any) -> Tensor:
    return torch.cat(list(separate_song(graph, probe_audio(song), **keywords)), dim=-1)


CASES = [pytest.param(seed, marks=pytest.mark.exhaustive) if seed >= 6 else seed for seed in range(200)]


@pytest.mark.parametrize("seed", CASES)
def test_a_graph_gives_the_samples_of_separate_calls_in_every_mode(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(reading.AudioFile.blocks, "__defaults__", (dice.choice([300, 1000, 1 << 18]),))
    graph = random_graph(dice, normalizing=seed % 2 == 0)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (dice.choice([1, 2]), dice.choice([1, 900, 5001, 20_000])))
    song = write(tmp_path / "song.wav", samples.astype(np.float32))
    given = by_single_calls(graph, song, tmp_path)
    expected = outputs_of(graph, given)
    assert torch.equal(run(graph, song), expected)
    assert torch.equal(run(graph._replace(one_model_at_a_time=True), song), expected)
    mixture = read_audio(song)[0]
    for step, all_of_it in zip(graph.steps, given, strict=True):
        source = (
            mixture
            if step.source is None
            else given[step.source.step][-1 if step.source.stem == REST else step.source.stem]
        )  # type: ignore[index]
        torch.testing.assert_close(all_of_it.sum(0), source, rtol=0, atol=1e-6)


PARTS = [pytest.param(seed, marks=pytest.mark.exhaustive) if seed >= 4 else seed for seed in range(40)]


@pytest.mark.parametrize("seed", PARTS)
def test_a_part_through_a_graph_has_the_samples_of_the_whole(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    graph = random_graph(dice, normalizing=seed % 4 == 0, ensembles=["avg_wave", "avg_fft"])
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (2, 30_000)).astype(np.float32)
    song = write(tmp_path / "song.wav", samples)
    whole = run(graph, song)
    first = dice.randrange(29_000)
    last = first + dice.choice([100, 900, 5000])
    for mode in (graph, graph._replace(one_model_at_a_time=True)):
        part = run(mode, song, part=Part(first / RATE, last / RATE))
        torch.testing.assert_close(part, whole[..., first:last], rtol=0, atol=2e-6)
