"""A whole training: find songs, build or load a model, and train it to the end of the run.

    train("train.yaml", "runs/first", songs="MUSDB18-HQ")

The loop runs on Lightning Fabric, because its FSDP2 strategy calls a function of ours to shard the model, on a CPU
too: all transformers of an axis share a position embedding, which automatic wrapping cannot give an owner.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, Final

import torch
from tqdm import tqdm

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import read_configuration
from hunterFormsBS.console import Console
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.songs.signals import Waiting, end_if_asked, uninterrupted
from hunterFormsBS.training.adapters import add_adapters, settings_of_adapters
from hunterFormsBS.training.datasets import find_data
from hunterFormsBS.training.engine import in_processes, largest_of_processes, make_fabric, mean_of_processes
from hunterFormsBS.training.metrics import require
from hunterFormsBS.training.msst import read_last
from hunterFormsBS.training.rehearsal import rehearse
from hunterFormsBS.training.report import write_report
from hunterFormsBS.training.run import Batch, Run
from hunterFormsBS.training.sections import is_of_msst, settings_from
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.speed import Speed, peak_memory
from hunterFormsBS.training.starting import describe, freeze, start_from
from hunterFormsBS.training.states import claim
from hunterFormsBS.training.truth import Song, explain_sums, find_songs

if TYPE_CHECKING:
    from hunterFormsBS.training.loggers import Log

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
    console, output = console or Console("training"), Path(output)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    content = read_configuration(configuration)
    settings = settings_from(content)
    require(settings.metrics)
    if settings.logger == "wandb":
        require_wandb()
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
        from hunterFormsBS.training.loggers import open_log

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
            log: Log | None = None
            if fabric.is_global_zero:
                # Log entries of a killed process after its last state are removed.
                since = run.updates + (not run.pending)
                log = open_log(settings.logger, output, content, since=since if resumed else None)
                ends.push(partial(_close, log, run))
                for line in description.splitlines():
                    console.show(line)
                console.show(_beginning(run, len(to_train_on), len(to_validate_on)))
                for line in explain_sums([*to_train_on, *to_validate_on], settings.instruments):
                    console.show(line)
            remarks = run.prepare([*to_train_on, *to_validate_on])
            if log is not None:
                _remark(remarks, output / "check.txt", console)
            batches = run.batches(to_train_on)
            if settings.rehearse and run.updates < settings.updates:
                first = next(batches)
                rehearse(run, first, to_validate_on)
                batches = chain([first], batches)
            if log is not None:
                ends.push(partial(_report, log, run))
            if checkpoint is not None and not resumed:
                _validate(run, to_validate_on, log, "before", console)
            _update(run, batches, to_validate_on, log, console)

    in_processes(fabric, work)


def require_wandb() -> None:
    """Ask for wandb if it is missing.

    Raises
    ------
    ImportError
    """
    try:
        import_module("wandb")
    except ImportError as error:
        raise ImportError(f"training.logger: wandb needs wandb: {how_to_install('wandb')} ({error})") from error


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
    log: Log | None,
    console: Console,
) -> None:
    """Update the weights to the end of the run, with logging, validations and saving.

    After a signal the current update is finished and saved. A validation, before which a state was saved, ends at once.
    """
    settings, fabric = run.settings, run.fabric
    with (
        uninterrupted() as waiting,
        tqdm(
            total=settings.updates, initial=run.updates, unit="update", dynamic_ncols=True, disable=log is None
        ) as bar,
    ):
        if run.pending:
            _log(log, run)  # which has been removed
            _validate_and_save(run, validation_songs, log, console, waiting)
        speed = Speed()
        while run.updates < settings.updates:
            before = run.samples
            logged = run.update(batches)
            speed.count((run.samples - before) * fabric.world_size / settings.sample_rate)
            bar.update()
            at_end = run.updates == settings.updates
            if run.updates % settings.log_every == 0 or at_end:
                names, values = list(logged), torch.stack(list(logged.values()))
                run.logged = dict(zip(names, map(float, mean_of_processes(fabric, values)), strict=True))
                run.logged |= speed.read(settings.updates - run.updates)
                if memory := largest_of_processes(fabric, peak_memory(fabric.device)):
                    run.logged["memory/peak_gb"] = memory / 1e9
                bar.set_postfix_str(f"loss={run.logged['loss/total']:.4f}")
                _log(log, run)
            else:
                run.logged = {}
            run.pending = bool(validation_songs) and (run.updates % settings.validation_every == 0 or at_end)
            number = largest_of_processes(fabric, next(iter(waiting.received), 0))
            if run.pending or number or run.updates % settings.checkpoint_every == 0 or at_end:
                if log is not None:
                    log.flush()  # log entries up to a state are on disk before the state
                waiting.received.clear()  # the user should see that the disk is full
                with speed.left_out():
                    run.save()
            if number:
                if log is not None:
                    console.tell(_ending(run, number))
                waiting.received.insert(0, number)
                return
            if run.pending:
                with speed.left_out():
                    _validate_and_save(run, validation_songs, log, console, waiting)


def _ending(run: Run, number: int) -> str:
    """Return a line on why a run ends early."""
    return (
        f"{Signals(number).name}: saved after update {run.updates} of {run.settings.updates}; give the same command "
        "again to continue"
    )


def _log(log: Log | None, run: Run) -> None:
    if log is not None:
        log.numbers(run.logged, run.updates)


def _validate_and_save(run: Run, songs: Sequence[Song], log: Log | None, console: Console, waiting: Waiting) -> None:
    """Score a model whose state was saved before, and save a state after that."""
    with waiting.interruptible():
        _validate(run, songs, log, f"after {run.updates} updates", console)
        end_if_asked()  # what a signal raises can be lost in a destructor
    run.pending = False
    if log is not None:
        log.flush()
    run.save()


def _validate(run: Run, songs: Sequence[Song], log: Log | None, when: str, console: Console) -> None:
    """Score the model on whole songs, if any, and print the scores."""
    if not songs:
        return
    scores = run.validate(songs, log)
    if log is not None:
        metric = run.settings.metric_for_best
        name, unit = NAMES_AND_UNITS.get(metric, (metric, ""))
        with tqdm.external_write_mode():
            console.show(f"{name} {when}: " + ", ".join(f"{stem} {score:.2f}{unit}" for stem, score in scores.items()))


def _close(log: Log, run: Run, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
    """Close the log when the run ends, in whatever way."""
    try:
        log.close(complete=run.updates == run.settings.updates)
    except OSError:
        if error is None:  # the user should see what ended the run
            raise


def _report(log: Log, run: Run, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
    """Write the report of a run when it ends, in whatever way."""
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        ending = "a signal asked it to; the same command continues it"
    elif error is not None:
        ending = f"{type(error).__name__}: {error}"
    else:
        ending = "after its last update"
    try:
        log.flush()
        write_report(
            run.folder,
            run.settings,
            run.configuration.get("model") or {},
            ending=ending,
            updates=run.updates,
            seconds=run.seconds,
        )
    except OSError as wrong:
        warnings.warn(f"{run.folder / 'report.html'} cannot be written: {wrong.strerror}", stacklevel=2)


def _remark(remarks: Sequence[str], pathFilename: Path, console: Console) -> None:
    """Print the first remarks on songs, and write all of them to a file."""
    if not remarks:
        return
    pathFilename.write_text("".join(f"{remark}\n" for remark in remarks), encoding="utf-8")
    for remark in remarks[:REMARKS]:
        console.show(f"check: {remark}")
    more = f"the first {REMARKS} above; " if len(remarks) > REMARKS else ""
    console.show(f"check: {len(remarks)} remarks on the songs, {more}all in {pathFilename}")
