"""A whole training: find songs, build or load a model, and train it to the end of the run.

    train("train.yaml", "runs/first", songs="MUSDB18-HQ")

The loop runs on Lightning Fabric, because its FSDP2 strategy calls a function of ours to shard the model, on a CPU
too: all transformers of an axis share a position embedding, which automatic wrapping cannot give an owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, Final

import torch
from tqdm import tqdm

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import read_configuration
from hunterFormsBS.console import Console
from hunterFormsBS.songs.signals import Waiting, uninterrupted
from hunterFormsBS.training.adapters import add_adapters, settings_of_adapters
from hunterFormsBS.training.datasets import find_data
from hunterFormsBS.training.engine import in_processes, largest_of_processes, make_fabric, mean_of_processes
from hunterFormsBS.training.metrics import require
from hunterFormsBS.training.msst import read_last
from hunterFormsBS.training.pictures import log_number
from hunterFormsBS.training.rehearsal import rehearse
from hunterFormsBS.training.run import Batch, Run
from hunterFormsBS.training.sections import is_of_msst, settings_from
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.starting import describe, freeze, start_from
from hunterFormsBS.training.states import claim
from hunterFormsBS.training.truth import Song, explain_sums, find_songs

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["train"]

REMARKS: Final = 20
"""Number of printed remarks on the songs."""

NAMES_AND_UNITS: Final = {"sdr": ("SDR", " dB"), "si_sdr": ("SI-SDR", " dB"), "museval_sdr": ("SDR of museval", " dB")}


def train(
    configuration: Path | str,
    output: Path | str,
    *,
    songs: Path | str | None = None,
    data: Sequence[Path | str] = (),
    valid: Path | str | None = None,
    checkpoint: Path | str | None = None,
    load_optimizer: bool = False,
    accelerator: str = "auto",
    devices: str = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    console: Console | None = None,
) -> None:
    """Train a model, or continue an interrupted run.

    Parameters
    ----------
    configuration : path
        YAML or JSON with the model and the settings.
    output : path
        Folder of the run; see `hunterFormsBS.training.run.Run`. If it has a state, the run is continued.
    songs : path, default None
        Folder with `train/` and, to validate on, `test/`.
    data : sequence of path
        Instead of `songs`: folders or CSV files; see `hunterFormsBS.training.datasets.find_data`.
    valid : path, default None
        With `data`: folder of songs to validate on.
    checkpoint : path, default None
        Start from these weights instead of random ones.
    load_optimizer : bool
        Continue the run of the checkpoint, `last_*.ckpt` of Music-Source-Separation-Training.
    accelerator, devices, num_nodes, strategy
        See `hunterFormsBS.training.engine.make_fabric`.
    console : Console, default None
        Output of progress; None: standard output.

    Raises
    ------
    ValueError, OSError, ImportError
        If a file or a setting is invalid, before anything is trained.
    StoppedError
        If the run cannot continue. What it saved before is in `output`.
    """
    from torch.utils.tensorboard import SummaryWriter

    console, output = console or Console("training"), Path(output)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    content = read_configuration(configuration)
    settings = settings_from(content)
    require(settings.metrics)
    content.pop("lora", None)  # not read here, so the checkpoints of this run do not have it
    to_train_on, to_validate_on = _songs(settings, songs, data, valid)
    fabric = make_fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=settings.precision,
        use_amp=settings.use_amp,
    )

    def work() -> None:
        with ExitStack() as ends:
            lock = claim(fabric, output)
            if lock is not None:
                ends.callback(lock.close)
            model, adapted, description = _build(content, settings, checkpoint)
            run = Run(fabric, model, settings, content, output, adapted)
            ends.callback(run.close)
            resumed = run.resume()
            if load_optimizer and checkpoint is not None and not resumed:
                run.take_over(read_last(checkpoint, model))
            writer: SummaryWriter | None = None
            if fabric.is_global_zero:
                # Log entries of a killed process after its last state are removed.
                since = run.updates + (not run.pending)
                writer = SummaryWriter(str(output / "tensorboard"), purge_step=since if resumed else None)
                for line in description.splitlines():
                    console.show(line)
                console.show(_beginning(run, len(to_train_on), len(to_validate_on)))
                for line in explain_sums([*to_train_on, *to_validate_on], settings.instruments):
                    console.show(line)
            remarks = run.prepare([*to_train_on, *to_validate_on])
            if writer is not None:
                _report(remarks, output / "check.txt", console)
            batches = run.batches(to_train_on)
            if settings.rehearse and run.updates < settings.updates:
                first = next(batches)
                rehearse(run, first, to_validate_on)
                batches = chain([first], batches)
            if checkpoint is not None and not resumed:
                _validate(run, to_validate_on, writer, "before", console)
            _update(run, batches, to_validate_on, writer, console)
            if writer is not None:
                writer.close()

    in_processes(fabric, work)


def _songs(
    settings: Settings, songs: Path | str | None, data: Sequence[Path | str], valid: Path | str | None
) -> tuple[list[Song], list[Song]]:
    """Return the songs for training and for validation."""
    if (songs is None) == (not data):
        raise ValueError("give either songs, a folder with train/ in it, or data")
    paths = [Path(path) for path in data] if songs is None else [Path(songs) / "train"]
    if valid is not None and not Path(valid).is_dir():
        raise ValueError(f"--valid {valid} is not a folder: name one that holds a folder for each song")
    found = find_data(settings.dataset_type, paths, settings.instruments, settings.sample_rate)
    folder = Path(valid) if valid is not None else None if songs is None else Path(songs) / "test"
    if folder is None or not folder.is_dir():
        if settings.schedule == "ReduceLROnPlateau":
            raise ValueError(
                "ReduceLROnPlateau lowers the learning rate after validations, and there are no songs to validate on: "
                "put them into the folder test, or name them in --valid, or say training.scheduler: constant"
            )
        return found, []
    to_validate_on = find_songs(folder, settings.instruments, settings.sample_rate, target=settings.target_instrument)
    return found, to_validate_on[: settings.validation_songs]


def _build(
    configuration: Mapping[str, Any], settings: Settings, checkpoint: Path | None
) -> tuple[BandSplitRotator, Any, str]:
    """Build the model, with adapters, if any, and print a summary of what is trained."""
    torch.manual_seed(settings.seed)  # pyright: ignore[reportUnknownMemberType]
    upstream = configuration.get("upstream", "msst" if is_of_msst(configuration) else None)
    model, origin = start_from(checkpoint, configuration, stems=settings.stems, heads=settings.heads, upstream=upstream)
    adapted: Any = None
    if settings.lora is not None:
        adapted = add_adapters(model, settings_of_adapters(settings))
    elif settings.freeze:
        freeze(model, settings.freeze, settings.train)
    return model, adapted, describe(model, origin)


def _beginning(run: Run, songs: int, validation_songs: int) -> str:
    """Return a line on the songs, the size and the processes of the run."""
    trained = sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
    return (
        f"{songs} songs to train on, {validation_songs} to validate on, {trained:,} parameters, "
        f"{run.fabric.world_size} processes on {run.fabric.device.type}, {run.precision}; "
        f"{'continuing after' if run.updates else 'starting at'} update {run.updates} of {run.settings.updates}"
    )


def _update(
    run: Run,
    batches: Iterator[Batch],
    validation_songs: Sequence[Song],
    writer: SummaryWriter | None,
    console: Console,
) -> None:
    """Update the weights to the end of the run, with logging, validations and saving.

    After a signal the current update is finished and saved. A validation, before which a state was saved, ends at once.
    """
    settings, fabric = run.settings, run.fabric
    with (
        uninterrupted() as waiting,
        tqdm(
            total=settings.updates, initial=run.updates, unit="update", dynamic_ncols=True, disable=writer is None
        ) as bar,
    ):
        if run.pending:
            _log(writer, run)  # which the writer has removed
            _validate_and_save(run, validation_songs, writer, console, waiting)
        while run.updates < settings.updates:
            logged = run.update(batches)
            bar.update()
            at_end = run.updates == settings.updates
            if run.updates % settings.log_every == 0 or at_end:
                names, values = list(logged), torch.stack(list(logged.values()))
                run.logged = dict(zip(names, map(float, mean_of_processes(fabric, values)), strict=True))
                bar.set_postfix_str(f"loss={run.logged['loss/total']:.4f}")
                _log(writer, run)
            else:
                run.logged = {}
            run.pending = bool(validation_songs) and (run.updates % settings.validation_every == 0 or at_end)
            number = largest_of_processes(fabric, next(iter(waiting.received), 0))
            if run.pending or number or run.updates % settings.checkpoint_every == 0 or at_end:
                if writer is not None:
                    writer.flush()  # log entries up to a state are on disk before the state
                waiting.received.clear()  # the user should see that the disk is full
                run.save()
            if number:
                if writer is not None:
                    console.tell(_ending(run, number))
                waiting.received.insert(0, number)
                return
            if run.pending:
                _validate_and_save(run, validation_songs, writer, console, waiting)


def _ending(run: Run, number: int) -> str:
    """Return a line on why a run ends early."""
    return (
        f"{Signals(number).name}: saved after update {run.updates} of {run.settings.updates}; give the same command "
        "again to continue"
    )


def _log(writer: SummaryWriter | None, run: Run) -> None:
    if writer is not None:
        for name, value in run.logged.items():
            log_number(writer, name, value, run.updates)


def _validate_and_save(
    run: Run, songs: Sequence[Song], writer: SummaryWriter | None, console: Console, waiting: Waiting
) -> None:
    """Score a model whose state was saved before, and save a state after that."""
    with waiting.interruptible():
        _validate(run, songs, writer, f"after {run.updates} updates", console)
    run.pending = False
    if writer is not None:
        writer.flush()
    run.save()


def _validate(run: Run, songs: Sequence[Song], writer: SummaryWriter | None, when: str, console: Console) -> None:
    """Score the model on whole songs, if any, and print the scores."""
    if not songs:
        return
    scores = run.validate(songs, writer)
    if writer is not None:
        metric = run.settings.metric_for_best
        name, unit = NAMES_AND_UNITS.get(metric, (metric, ""))
        with tqdm.external_write_mode():
            console.show(f"{name} {when}: " + ", ".join(f"{stem} {score:.2f}{unit}" for stem, score in scores.items()))


def _report(remarks: Sequence[str], pathFilename: Path, console: Console) -> None:
    """Print the first remarks on songs, and write all of them to a file."""
    if not remarks:
        return
    pathFilename.write_text("".join(f"{remark}\n" for remark in remarks), encoding="utf-8")
    for remark in remarks[:REMARKS]:
        console.show(f"check: {remark}")
    more = f"the first {REMARKS} above; " if len(remarks) > REMARKS else ""
    console.show(f"check: {len(remarks)} remarks on the songs, {more}all in {pathFilename}")
