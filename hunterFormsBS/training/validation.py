"""Scores of a model on whole songs."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.checkpoint.adapters import read_adapters, without_adapters
from hunterFormsBS.choices import PRECISIONS
from hunterFormsBS.console import Console
from hunterFormsBS.parametersSeparation import ParametersSeparation
from hunterFormsBS.separation import separate
from hunterFormsBS.songs.settings import find_configuration
from hunterFormsBS.training.checking import check_shared
from hunterFormsBS.training.engine import gather, in_processes, make_fabric
from hunterFormsBS.training.metrics import measure, require
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.truth import Read, Song, explain_sums, find_songs, read, read_song

if TYPE_CHECKING:
    from lightning_fabric import Fabric

DTYPES: Mapping[str, torch.dtype] = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16, torch.float16), strict=True))


class Score(NamedTuple):
    """Metrics of a stem of a song, by name. A silent stem has few or none."""

    song: str
    stem: str
    values: dict[str, float]


def validate(
    checkpoint: Path,
    songs: Path,
    *,
    configuration: Path | None = None,
    stems: Sequence[str] = (),
    metrics: Sequence[str] = ("sdr",),
    output: Path | None = None,
    sample_rate: int | None = None,
    chunk_size: int | None = None,
    num_overlap: int | None = None,
    precision: str = "32-true",
    accelerator: str = "auto",
    devices: str = "auto",
    lora: Path | None = None,
    console: Console | None = None,
) -> dict[str, dict[str, float]]:
    """Score a checkpoint on songs with known stems.

    Parameters
    ----------
    checkpoint : Path
        A file, or a name for `from_checkpoint`.
    songs : Path
        Folder with a folder for each song, and in that a file for each stem.
    configuration : Path, default None
        YAML or JSON of the checkpoint. Settings that are not passed come from there, or from within the checkpoint.
    stems : sequence of str
        Names of the stems, in the order of the model's heads. What belongs to `other` depends on all instruments of the
        configuration, also for a model of one stem.
    metrics : sequence of str
        See `hunterFormsBS.training.metrics`.
    output : Path, default None
        CSV file with a line for each stem of each song.
    sample_rate, chunk_size, num_overlap : int, default None
        See `hunterFormsBS.separation.separate`.
    precision : str
        `32-true`, `bf16-mixed` or `16-mixed`.
    accelerator, devices : str
        See `hunterFormsBS.training.engine.make_fabric`. The processes divide the songs.
    lora : Path, default None
        Adapters for the checkpoint, for `read_adapters`. Their stems are scored.
    console : Console, default None
        Output of remarks on stems and songs; None: standard output.

    Returns
    -------
    dict of str to dict of str to float
        Means over songs by metric and stem. Empty in all processes except the first.

    Raises
    ------
    ValueError, ImportError, OSError
        If a file or an argument cannot be used.
    """
    path, found, content = find_configuration(checkpoint, configuration)
    adapters = None if lora is None else read_adapters(lora, content)
    if adapters is not None:
        found = None if found is None else without_adapters(content)
        content = adapters.configuration_of(content)
    sections: list[Mapping[str, Any]] = [content.get(name) or {} for name in ("training", "audio", "inference")]
    training, audio, inference = sections
    instruments, target = _stems_of(training, stems)
    settings = Settings(
        instruments=instruments,
        target_instrument=target,
        sample_rate=_first(sample_rate, audio.get("sample_rate"), Settings.sample_rate),
        chunk_size=_first(chunk_size, audio.get("chunk_size"), ParametersSeparation.chunk_size),
        num_steps=1,
        lr=1.0,
        num_overlap=_first(num_overlap, inference.get("num_overlap"), Settings.num_overlap),
        metrics=tuple(metrics),
        metric_for_best=metrics[0],
    )
    require(settings.metrics)
    listed = find_songs(songs, instruments, settings.sample_rate, target=target)
    model = from_checkpoint(path, found)
    if adapters is not None:
        model = adapters.merge_into(model)
    if model.num_stems != len(settings.stems):
        raise ValueError(
            f"--stems names {len(settings.stems)} stems, and the model has {model.num_stems}: name each of them"
        )
    console = console or Console("validation")
    fabric = make_fabric(
        accelerator=accelerator, devices=devices, num_nodes=1, strategy="auto", precision="32-true", use_amp=False
    )

    def work() -> list[Score]:
        remarks = check_shared(fabric, listed, settings.sample_rate)
        if fabric.is_global_zero:
            for line in (*explain_sums(listed, instruments), *(f"check: {remark}" for remark in remarks)):
                console.show(line)
        return score_songs(fabric, model.to(fabric.device), listed, settings, DTYPES[precision])

    table = in_processes(fabric, work)
    if not fabric.is_global_zero:
        return {}
    if output is not None:
        write_table(output, table, settings.metrics)
    return {metric: means(table, metric) for metric in settings.metrics}


def _stems_of(training: Mapping[str, Any], stems: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Return the names of all instruments, and, for a model of one of several, the name of its stem."""
    instruments = tuple(training.get("instruments") or ())
    target = stems[0] if len(stems) == 1 else None if stems else training.get("target_instrument")
    if target and target in instruments:
        return instruments, target
    named = tuple(stems) or ((target,) if target else instruments)
    if not named:
        raise ValueError("the configuration names no stems: name them in --stems, in the order of the model's heads")
    return named, None


def _first(*values: Any) -> Any:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)


def score_songs(
    fabric: Fabric,
    model: nn.Module,
    songs: Sequence[Song],
    settings: Settings,
    dtype: torch.dtype | None,
    reading: Read = read,
) -> list[Score]:
    """Separate songs, divided among the processes, and score each stem of each song.

    Parameters
    ----------
    fabric : Fabric
    model : nn.Module
        The same in every process, not sharded, on the process's device.
    songs : sequence of Song
    settings : Settings
    dtype : torch.dtype or None
        See `separate`.
    reading : callable
        The function that reads songs.

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
        estimates, truth, mixture = (each.float().to(fabric.device) for each in (estimates, truth, mixture))
        measured = measure(settings.metrics, estimates, truth, mixture, settings.sample_rate)
        name = songs[number].folder.name
        mine.append((number, [Score(name, *each) for each in zip(settings.stems, measured, strict=True)]))
    everyone = gather(fabric, mine)
    return [score for _, scores in sorted(pair for each in everyone for pair in each) for score in scores]


def means(scores: Sequence[Score], metric: str) -> dict[str, float]:
    """Return the mean of a metric over songs, by stem. A stem without the metric in any song has no entry."""
    values: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        if metric in score.values:
            values[score.stem].append(score.values[metric])
    return {stem: sum(each) / len(each) for stem, each in values.items()}


def write_table(pathFilename: Path, scores: Sequence[Score], metrics: Sequence[str]) -> None:
    """Write a CSV file with a line for each stem of each song. Missing metrics are empty."""
    pathFilename.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathFilename.with_name(pathFilename.name + ".unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("song", "stem", *metrics))
        for score in scores:
            writer.writerow((score.song, score.stem, *(score.values.get(metric, "") for metric in metrics)))
    unfinished.replace(pathFilename)


def separate_with(model: nn.Module, mixture: Tensor, settings: Settings, dtype: torch.dtype | None) -> Tensor:
    """Separate a mixture, `(s, t)`, with the settings: `(n, s, t)`."""
    return separate(
        model,
        mixture,
        chunk_size=settings.chunk_size,
        num_overlap=settings.num_overlap,
        batch_size=settings.inference_batch_size,
        dtype=dtype,
    )


def channels_of(model: nn.Module) -> int:
    """Return the number of audio channels of a model."""
    return 2 if model.stereo else 1
