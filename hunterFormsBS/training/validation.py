"""How good a model is on whole songs."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from hunterFormsBS.separation import separate
from hunterFormsBS.training.engine import gather
from hunterFormsBS.training.metrics import measure
from hunterFormsBS.training.segments import Read, Song, read, read_song
from hunterFormsBS.training.settings import Settings

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Score(NamedTuple):
    """Metrics of a stem of a song, by name. A silent stem has none, or few."""

    song: str
    stem: str
    values: dict[str, float]


def score_songs(
    fabric: Fabric,
    model: nn.Module,
    songs: Sequence[Song],
    settings: Settings,
    dtype: torch.dtype | None,
    reading: Read = read,
) -> list[Score]:
    """Separate songs, shared out among the processes, and measure each stem of each song.

    Parameters
    ----------
    fabric : Fabric
    model : nn.Module
        The same in every process, not sharded, on the process's device.
    songs : sequence of Song
    settings : Settings
    dtype : torch.dtype, optional
        See `separate`.
    reading : callable
        How songs are read.

    Returns
    -------
    list of Score
        The same in every process, in the order of songs.
    """
    targets = [settings.instruments.index(stem) for stem in settings.stems]
    mine: list[tuple[int, list[Score]]] = []
    numbers = range(fabric.global_rank, len(songs), fabric.world_size)
    for number in tqdm(numbers, desc="validation", unit="song", leave=False, disable=fabric.global_rank > 0):
        mixture, truth = read_song(songs[number], targets, channels_of(model), reading)
        estimates = separate_with(model, mixture, settings, dtype)
        on_device = [each.float().to(fabric.device) for each in (estimates, truth, mixture)]
        measured = measure(settings.metrics, *on_device, settings.sample_rate)
        name = songs[number].folder.name
        mine.append((number, [Score(name, *each) for each in zip(settings.stems, measured, strict=True)]))
    everyone = gather(fabric, mine)
    return [score for _, scores in sorted(pair for each in everyone for pair in each) for score in scores]


def means(scores: Sequence[Score], metric: str) -> dict[str, float]:
    """Return the mean of a metric over songs, for each stem. A stem that has it in no song has no entry."""
    values: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        if metric in score.values:
            values[score.stem].append(score.values[metric])
    return {stem: sum(each) / len(each) for stem, each in values.items()}


def write_table(pathFilename: Path, scores: Sequence[Score], metrics: Sequence[str]) -> None:
    """Write a CSV file with a line for each stem of each song. The metrics that a stem does not have are empty."""
    pathFilename.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathFilename.with_name(pathFilename.name + ".unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("song", "stem", *metrics))
        for score in scores:
            writer.writerow((score.song, score.stem, *(score.values.get(metric, "") for metric in metrics)))
    unfinished.replace(pathFilename)


def separate_with(model: nn.Module, mixture: Tensor, settings: Settings, dtype: torch.dtype | None) -> Tensor:
    """Separate a mixture, `(s, t)`, as the configuration says: `(n, s, t)`."""
    return separate(
        model,
        mixture,
        chunk_size=settings.chunk_size,
        num_overlap=settings.num_overlap,
        batch_size=settings.inference_batch_size,
        dtype=dtype,
    )


def channels_of(model: nn.Module) -> int:
    """Return how many audio channels a model takes."""
    return 2 if model.stereo else 1
