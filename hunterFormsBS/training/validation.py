"""Scores of a model on whole songs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hunterFormsBS.bandSplitRotator import BandSplitRotator
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
from hunterFormsBS.training.scores import Comparison, Score, columns_of, means, writer_for
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.truth import Read, Song, explain_sums, find_songs, read, read_song

if TYPE_CHECKING:
    from lightning_fabric import Fabric

DTYPES: Mapping[str, torch.dtype] = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16, torch.float16), strict=True))


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
        CSV file, or Parquet if its name ends in `.parquet`, with a line for each stem of each song.
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
    measured = compare(
        [checkpoint],
        songs,
        configurations=[configuration],
        stems=stems,
        metrics=metrics,
        output=output,
        sample_rate=sample_rate,
        chunk_size=chunk_size,
        num_overlap=num_overlap,
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        lora=[lora],
        console=console,
    )
    return {metric: means(scores, metric) for scores in measured.scores.values() for metric in metrics}


def compare(
    checkpoints: Sequence[Path],
    songs: Path,
    *,
    configurations: Sequence[Path | None] = (None,),
    stems: Sequence[str] = (),
    metrics: Sequence[str] = ("sdr",),
    output: Path | None = None,
    sample_rate: int | None = None,
    chunk_size: int | None = None,
    num_overlap: int | None = None,
    precision: str = "32-true",
    accelerator: str = "auto",
    devices: str = "auto",
    lora: Sequence[Path | None] = (None,),
    console: Console | None = None,
) -> Comparison:
    """Measure how well several checkpoints separate the same songs.

    All are read before the first is measured, into main memory, and each is measured on the device by itself.

    Parameters
    ----------
    checkpoints : sequence of Path
        Files, or names that `from_checkpoint` knows. They may have different stems.
    configurations, lora : sequence of Path or None
        See `validate`: one for all checkpoints, or one for each.
    output : Path, optional
        CSV file, or Parquet if its name ends in `.parquet`, with a line for each stem of each song, and a column for
        the checkpoint if there are several.
    songs, stems, metrics, sample_rate, chunk_size, num_overlap, precision, accelerator, devices, console
        See `validate`.

    Returns
    -------
    Comparison
        Empty in all processes but the first.

    Raises
    ------
    ValueError, ImportError, OSError
        If a file or an argument cannot be used.
    """
    require(tuple(metrics))
    write = None if output is None else writer_for(output)
    stated = _Stated(stems, tuple(metrics), sample_rate, chunk_size, num_overlap)
    count = len(checkpoints)
    candidates = [
        _Candidate.read(checkpoint, configuration, adapters, songs, stated)
        for checkpoint, configuration, adapters in zip(
            checkpoints,
            _for_each("--configuration", configurations, count),
            _for_each("--lora", lora, count),
            strict=True,
        )
    ]
    if len({candidate.name for candidate in candidates}) < count:
        raise ValueError("--checkpoint has a name twice: remove one")
    console = console or Console("validation")
    fabric = make_fabric(
        accelerator=accelerator, devices=devices, num_nodes=1, strategy="auto", precision="32-true", use_amp=False
    )

    def work() -> dict[str, list[Score]]:
        scores: dict[str, list[Score]] = {}
        said: dict[str, None] = {}
        for candidate in candidates:
            if candidate.songs != candidates[0].songs or not scores:
                remarks = check_shared(fabric, candidate.songs, candidate.settings.sample_rate)
                lines = explain_sums(candidate.songs, candidate.settings.instruments)
                for line in (*lines, *(f"check: {remark}" for remark in remarks)):
                    if fabric.is_global_zero and line not in said:
                        console.show(line)
                        said[line] = None
            model = candidate.model.to(fabric.device)
            scores[candidate.name] = score_songs(fabric, model, candidate.songs, candidate.settings, DTYPES[precision])
            model.to("cpu")
        return scores

    scores = in_processes(fabric, work)
    if not fabric.is_global_zero:
        return Comparison({}, {})
    if write is not None:
        write(columns_of(scores, metrics))
    return Comparison(scores, {each.name: each.stems_unlike(candidates[0]) for each in candidates[1:]})


class _Stated(NamedTuple):
    """What counts more than the configurations of checkpoints."""

    stems: Sequence[str]
    metrics: tuple[str, ...]
    sample_rate: int | None
    chunk_size: int | None
    num_overlap: int | None


class _Candidate(NamedTuple):
    """A checkpoint to measure, its settings, and the songs with the truth of its stems."""

    name: str
    model: BandSplitRotator
    settings: Settings
    songs: list[Song]

    @classmethod
    def read(
        cls, checkpoint: Path, configuration: Path | None, lora: Path | None, songs: Path, stated: _Stated
    ) -> _Candidate:
        path, found, content = find_configuration(checkpoint, configuration)
        adapters = None if lora is None else read_adapters(lora, content)
        if adapters is not None:
            found = None if found is None else without_adapters(content)
            content = adapters.configuration_of(content)
        sections: list[Mapping[str, Any]] = [content.get(name) or {} for name in ("training", "audio", "inference")]
        training, audio, inference = sections
        instruments, target = _stems_of(training, stated.stems)
        settings = Settings(
            instruments=instruments,
            target_instrument=target,
            sample_rate=_first(stated.sample_rate, audio.get("sample_rate"), Settings.sample_rate),
            chunk_size=_first(stated.chunk_size, audio.get("chunk_size"), ParametersSeparation.chunk_size),
            num_steps=1,
            lr=1.0,
            num_overlap=_first(stated.num_overlap, inference.get("num_overlap"), Settings.num_overlap),
            metrics=stated.metrics,
            metric_for_best=stated.metrics[0],
        )
        listed = find_songs(songs, instruments, settings.sample_rate, target=target)
        model = from_checkpoint(path, found)
        if adapters is not None:
            model = adapters.merge_into(model)
        if model.num_stems != len(settings.stems):
            raise ValueError(
                f"--stems names {len(settings.stems)} stems, and the model has {model.num_stems}: name each of them"
            )
        return cls(str(checkpoint) if lora is None else f"{checkpoint} with {lora}", model, settings, listed)

    def stems_unlike(self, other: _Candidate) -> dict[str, tuple[str, str]]:
        """Return the stems that are another sum of files for another checkpoint: for each, the sum there and here."""
        ours, theirs = self._sums(), other._sums()
        apart: dict[str, tuple[str, str]] = {}
        for (song, stem), files in ours.items():
            if theirs.get((song, stem), files) != files:
                apart.setdefault(stem, (theirs[song, stem], files))
        return apart

    def _sums(self) -> dict[tuple[str, str], str]:
        """Return what each stem of each song is."""
        numbers = [(stem, self.settings.instruments.index(stem)) for stem in self.settings.stems]
        return {
            (song.folder.name, stem): " + ".join(sorted(path.name for path in song.parts[number]))
            for song in self.songs
            for stem, number in numbers
        }


def _for_each(option: str, paths: Sequence[Path | None], count: int) -> Sequence[Path | None]:
    """Return a path for each checkpoint, of one path for all or one for each."""
    if len(paths) not in (1, count):
        raise ValueError(f"{option} has {len(paths)} paths for {count} checkpoints: give one, or one for each")
    return [*paths] * (count // len(paths))


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
