"""A training run: its weights, their updates, and the folder of its states."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import save_checkpoint
from hunterFormsBS.songs.signals import ignore_signals
from hunterFormsBS.training.adapters import add_adapters, save_adapters, settings_of_adapters
from hunterFormsBS.training.averaging import AveragedWeights, copy_weights
from hunterFormsBS.training.cache import Cache, files_of
from hunterFormsBS.training.checking import check_shared, refuse
from hunterFormsBS.training.engine import compile_transformers, gather, is_sharded, mean_of_processes
from hunterFormsBS.training.losses import Losses
from hunterFormsBS.training.msst import Last
from hunterFormsBS.training.optimizers import make_optimizer
from hunterFormsBS.training.optimizerState import load_named_state, named_state, names_in_older_order, with_names
from hunterFormsBS.training.pictures import log_excerpt
from hunterFormsBS.training.resuming import kept, refuse_changes
from hunterFormsBS.training.schedules import Plateau, learning_rate_factor
from hunterFormsBS.training.scores import means, write_table
from hunterFormsBS.training.segments import Positions, Segments
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.sharding import like, whole
from hunterFormsBS.training.states import (
    KEPT,
    StoppedError,
    complete_states,
    refuse_damaged,
    remove,
    replace,
    replace_files,
)
from hunterFormsBS.training.truth import Read, Song, read, read_song
from hunterFormsBS.training.validation import DTYPES, channels_of, score_songs, separate_with

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from hunterFormsBS.training.loggers import Log

Batch = tuple[Tensor, Tensor]

DAMAGES = (OSError, EOFError, KeyError, RuntimeError, UnpicklingError, BadZipFile)
"""Exceptions from reading a damaged state."""


class Run:
    """A model in training.

    All randomness follows from the seed and the number of updates, so this number is the whole position of a run:
    states of readers or random number generators need not be saved, for any number of workers.

    Parameters
    ----------
    fabric : Fabric
        Launched.
    model : BandSplitRotator
    settings : Settings
    configuration : mapping
        The configuration of model and settings; it is saved in checkpoints.
    folder : Path
        It contains `resume` with states to continue from, `last.ckpt` and `best.ckpt` with averaged weights,
        `tensorboard` or `wandb` with the log, `history.jsonl` with its numbers, `scores` with a table for each
        validation, and `report.html`.
    adapted : peft.PeftModel, default None
        The wrapper of a model with adapters, which are saved instead of checkpoints, in `best.lora` and `last.lora`.

    Attributes
    ----------
    updates : int
        Finished updates.
    pending : bool
        Whether a validation is due before the next update.
    logged : dict of str to float
        The last logged values.
    samples : int
        Samples of audio that this process has trained on since it started.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: BandSplitRotator,
        settings: Settings,
        configuration: Mapping[str, Any],
        folder: Path,
        adapted: Any = None,
    ) -> None:
        self.fabric = fabric
        self.settings = settings
        self.configuration = configuration
        self.folder = folder
        self.adapted = adapted
        self.arguments = model.configuration
        compile_transformers(model, settings.compile)
        self.wrapped = fabric.setup_module(model)
        self.model: nn.Module = model  # the module without wrappers
        optimizer: Any = fabric.setup_optimizers(
            make_optimizer(
                model,
                settings.optimizer,
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                arguments=settings.optimizer_arguments,
                as_msst=settings.as_msst,
            )
        )
        self.optimizer = optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.sharded = is_sharded(fabric)
        self.average = AveragedWeights(model, settings.ema_momentum)
        self.plateau = Plateau(settings)
        # The model computes its own loss in less memory.
        self.losses: Losses | None = None
        if settings.losses != {"model": 1.0}:
            self.losses = Losses(
                settings.losses,
                sample_rate=settings.sample_rate,
                quantile=settings.q,
                coarse=settings.coarse_loss_clip,
                multi_stft=settings.loss_multistft,
            )
        self.updates = 0
        self.skipped = 0
        self.best = -math.inf
        self.pending = False
        self.logged: dict[str, float] = {}
        self.samples = 0
        self._seconds, self._begun = 0.0, time.perf_counter()
        self._loading = _closable(iter(()))

    @property
    def seconds(self) -> float:
        """How long the run has taken, in all processes that went on with it; what came after the last state is lost."""
        return self._seconds + time.perf_counter() - self._begun

    def resume(self) -> bool:
        """Continue from the newest readable state in the folder, if any.

        `last.ckpt` is written again from the newest state: a kill or a full disk can come between the two.

        Raises
        ------
        StoppedError
            If no state is readable, or `last.ckpt` cannot be written.
        ValueError
            If the state belongs to another run.
        """
        states = complete_states(self.folder)
        for path in states:
            try:
                state = self._read(path)
            except DAMAGES as error:
                reason = str(error).partition("\n")[0]
                warnings.warn(f"{path} cannot be read, so the state before it is tried: {reason}", stacklevel=2)
                continue
            self._take(state, path)
            if path == states[0]:
                self._write_last(self.average.gather())
            return True
        if states:
            raise StoppedError(
                f"no state in {self.folder / 'resume'} can be read: start again from the weights, with "
                f"--checkpoint {self.folder / 'last.ckpt'} and another --output"
            )
        return False

    def _read(self, path: Path) -> Mapping[str, Any]:
        refuse_damaged(path)
        # Processes that shard a model map the same file, and read their parts.
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=self.sharded)
        if missing := {"model", "optimizer", "progress"} - state.keys():
            raise KeyError(f"{sorted(missing)[0]} is missing")
        return state

    def _take(self, state: Mapping[str, Any], path: Path) -> None:
        progress = state["progress"]
        if progress["model"] != dict(self.configuration.get("model") or {}):
            raise ValueError(f"{self.folder} holds the run of another model: choose another --output")
        refuse_changes(progress.get("settings", {}), self.settings, self.folder)
        now = self.model.state_dict()
        if now.keys() != state["model"].keys():
            raise ValueError(
                f"{path} is of a run with other layers, with fine_tuning.lora or without: choose another --output"
            )
        names = names_in_older_order(state["model"], self.model)
        self.model.load_state_dict({key: like(tensor, now[key]) for key, tensor in state["model"].items()})
        optimizer = state["optimizer"] if "names" in progress else with_names(state["optimizer"], names)
        load_named_state(self.optimizer.optimizer, self.model, optimizer)
        self.average.load(progress["average"])
        self.fabric.strategy.precision.load_state_dict(progress["precision"])
        self.updates = progress["updates"]
        self.best = progress["best"]
        self.skipped = progress.get("skipped", 0)
        self.pending = progress.get("pending", False)
        self.logged = progress.get("logged", {})
        self._seconds = progress.get("seconds", 0.0)
        if "plateau" in progress:
            self.plateau.load_state_dict(progress["plateau"])

    def take_over(self, last: Last) -> None:
        """Continue a run of Music-Source-Separation-Training, whose weights the model has.

        Raises
        ------
        ValueError
            If it had another optimizer, or weights are sharded.
        """
        if last.name != self.settings.optimizer or self.sharded:
            raise ValueError(
                f"--load-optimizer takes over the state of {last.name}, and training.optimizer is "
                f"{self.settings.optimizer}{', sharded' if self.sharded else ''}: change that, or leave out the option"
            )
        # Its decay and other options continue too, as there; `Plateau` has the rate.
        load_named_state(self.optimizer.optimizer, self.model, last.optimizer, but=("params", "lr", "initial_lr"))
        self.updates = min(self.settings.updates_in(last.epochs), self.settings.updates)
        self.plateau.start_at(last.lr / self.rates[0])

    def save(self) -> None:
        """Write a state and the averaged weights. Each file appears once complete."""
        average = self.average.gather()
        first = self.fabric.is_global_zero
        state = {
            "model": whole(self.model.state_dict(), keep=first),
            "optimizer": whole(named_state(self.optimizer.optimizer, self.model), keep=first),
            "progress": {
                "model": dict(self.configuration.get("model") or {}),
                "settings": kept(self.settings),
                "names": True,  # the optimizer's state by names
                "average": average,
                "precision": self.fabric.strategy.precision.state_dict(),
                "updates": self.updates,
                "skipped": self.skipped,
                "best": self.best,
                "pending": self.pending,
                "logged": self.logged,
                "seconds": self.seconds,
                "plateau": self.plateau.state_dict(),
            },
        }
        path = self.folder / "resume" / f"{self.updates:09}"
        self._write(path, lambda: self._write_state(path, state))
        self._write_last(average)

    def _write_last(self, average: Mapping[str, Tensor]) -> None:
        name = "last.ckpt" if self.adapted is None else "last.lora"
        self._write(self.folder / name, lambda: self.write_checkpoint("last", average))

    def _write(self, path: Path, write: Callable[[], None]) -> None:
        """Write a file in the first process; end all processes if it cannot be written."""
        wrong = ""
        if self.fabric.is_global_zero:
            try:
                write()
            except (OSError, RuntimeError) as error:
                wrong = str(error).partition("\n")[0] or type(error).__name__
        if wrong := self.fabric.broadcast(wrong):
            raise StoppedError(
                f"{path} cannot be written: {wrong}. What was saved before is as it was: make room on the disk, and "
                "give the same command again"
            )

    def _write_state(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a state to a temporary name, rename it once complete, and remove older ones."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        try:
            torch.save(state, unfinished)
            replace(unfinished, path)
        except BaseException:
            remove(unfinished)
            raise
        for older in complete_states(self.folder)[KEPT:]:
            remove(older)

    def write_checkpoint(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Write NAME.ckpt, which `from_checkpoint` reads without any other file, or adapters to NAME.lora."""
        if self.adapted is not None:
            folder = self.folder / f"{name}.lora"
            unfinished = folder.with_suffix(".unfinished")
            remove(unfinished)
            save_adapters(self.with_adapters(weights), unfinished, self.settings)
            replace_files(unfinished, folder)
            return
        sections = {key: value for key, value in self.configuration.items() if key not in ("model", "upstream")}
        save_checkpoint(self.folder / f"{name}.ckpt", self.whole_model(weights), configuration=sections)

    def whole_model(self, weights: Mapping[str, Tensor]) -> BandSplitRotator:
        """Return a model on the CPU, without sharding, compilation and adapters, with these weights."""
        if self.adapted is not None:
            merged: BandSplitRotator = self.with_adapters(weights).merge_and_unload()
            return merged.eval()
        model = BandSplitRotator(**self.arguments)
        copy_weights(weights, model)
        return model.eval()

    def with_adapters(self, weights: Mapping[str, Tensor]) -> Any:
        """Return a peft model on the CPU with these weights."""
        model = BandSplitRotator(**self.arguments)
        adapted = add_adapters(model, settings_of_adapters(self.settings))
        copy_weights(weights, model)
        return adapted

    def prepare(self, songs: Sequence[Song]) -> list[str]:
        """Decode songs into the cache, and check them before the first update.

        The processes divide the songs.

        Returns
        -------
        list of str
            All remarks, in every process.

        Raises
        ------
        ValueError
            If files are damaged.
        """
        workers = max(1, self.settings.num_workers)
        if self.settings.cache is not None:
            mine = songs[self.fabric.global_rank :: self.fabric.world_size]
            damage = ""
            try:
                files = files_of(mine)
                Cache(Path(self.settings.cache)).fill(files, workers=workers, progress=self.fabric.is_global_zero)
            except ValueError as error:
                damage = str(error)
            refuse([each for each in gather(self.fabric, damage) if each])
        if self.updates or not self.settings.check:
            return []
        return check_shared(self.fabric, songs, self.settings.sample_rate, reading=self.reading, workers=workers)

    @property
    def reading(self) -> Read:
        """The function that reads songs."""
        return read if self.settings.cache is None else Cache(Path(self.settings.cache)).read

    def batches(self, songs: Sequence[Song]) -> Iterator[Batch]:
        """Yield this process's batches, from the current update to the end."""
        settings = self.settings
        self.segments = Segments(
            songs,
            chunk_size=settings.chunk_size,
            channels=channels_of(self.model),
            seed=settings.seed,
            targets=[settings.instruments.index(stem) for stem in settings.stems],
            remix=settings.probability_of_remixing,
            gains=settings.gains,
            min_mean_abs=settings.min_mean_abs,
            instruments=settings.instruments,
            augment=settings.augment(),
            mixup=settings.mixup_probs if settings.enable and settings.mixup else (),
            mixup_gains=(settings.mixup_loudness_min, settings.mixup_loudness_max),
            mixture_codec=settings.mixture_codec(),
            own_mixture=settings.own_mixture,
            lengths=settings.lengths,
            batch=settings.batch_size * self.fabric.world_size,
            reading=self.reading,
        )
        positions = Positions(
            self.updates * settings.gradient_accumulation_steps,
            settings.updates * settings.gradient_accumulation_steps,
            batch_size=settings.batch_size,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )
        loader: DataLoader[Batch] = DataLoader(
            self.segments,
            batch_sampler=positions,
            num_workers=settings.num_workers,
            pin_memory=self.fabric.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_run,
        )
        self.close()
        # Started now: it draws a random number, which must not change those of an update.
        self._loading = _closable(iter(loader))
        return self._loading

    def close(self) -> None:
        """End the workers."""
        self._loading.close()

    def update(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Update the weights once, and return values to log, averaged over this process's batches."""
        settings = self.settings
        # For dropout: different in each process and update, the same if the update is repeated.
        seed = hash((settings.seed, self.updates, self.fabric.global_rank)) % 2**63
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        self.wrapped.train()
        factor = learning_rate_factor(self.updates, settings) * self.plateau.factor
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        with _out_of_memory_explained(settings):
            terms = self._accumulate(batches)
            logged = {f"loss/{name}": value for name, value in terms.items()}
            logged["learning_rate"] = terms["total"].new_tensor(self.optimizer.param_groups[0]["lr"])
            wrong = self._step(terms["total"], logged)
        if wrong and settings.not_finite == "stop":
            raise StoppedError(self._report(wrong))
        self.skipped += bool(wrong)
        logged["skipped"] = terms["total"].new_tensor(self.skipped)
        self.optimizer.zero_grad()
        self.updates += 1
        self.average.update(self.updates)
        return logged

    def _accumulate(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Accumulate the gradients of an update, and return the mean losses."""
        steps = self.settings.gradient_accumulation_steps
        sums: dict[str, Tensor] = {}
        for batch in range(steps):
            mixture, stems = self.fabric.to_device(next(batches))
            self.samples += mixture.shape[0] * mixture.shape[-1]
            unfinished = batch + 1 < steps
            with self.fabric.no_backward_sync(self.wrapped, enabled=unfinished):  # pyright: ignore[reportUnknownMemberType]
                terms = self.loss_terms(mixture, stems)
                self.fabric.backward(terms["total"] / steps)
            for name, term in terms.items():
                share = term.detach().float() / steps
                sums[name] = sums[name] + share if name in sums else share
        return sums

    def _step(self, loss: Tensor, logged: dict[str, Tensor]) -> str:
        """Change the weights. If loss or gradient is not finite, do not, and return a message."""
        if not self._is_finite(loss):
            elsewhere = "not finite in another process, and " if math.isfinite(loss) else ""
            return f"loss of update {self.updates + 1} is {elsewhere}{float(loss)}"
        logged["gradient_norm"] = norm = self.clip()
        # In half precision gradients overflow now and then: the scaler skips that update and lowers its scale.
        if self.precision != "16-mixed" and not torch.isfinite(norm):
            return f"norm of the gradient of update {self.updates + 1} is {float(norm)}"
        self.optimizer.step()
        return ""

    def loss_terms(self, mixture: Tensor, stems: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch, `total`, and its terms."""
        if self.losses is None:
            total, (waveform, spectra) = self.wrapped(mixture, stems, return_loss_breakdown=True)
            return {"total": total, "waveform": waveform, "spectra": spectra}
        estimates = self.wrapped(mixture)
        total, terms = self.losses(self.model, mixture, estimates, stems)
        return {"total": total, **terms}

    def _is_finite(self, loss: Tensor) -> bool:
        """Tell whether the losses of all processes are finite."""
        return float(mean_of_processes(self.fabric, torch.isfinite(loss).float())) == 1

    def _report(self, wrong: str) -> str:
        """Return or raise a message about a loss or gradient that is not finite in some process."""
        batches = Positions(
            self.updates * self.settings.gradient_accumulation_steps,
            (self.updates + 1) * self.settings.gradient_accumulation_steps,
            batch_size=self.settings.batch_size,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )
        files = {str(path): None for batch in batches for index in batch for path in self.segments.files(index)}
        scale = self.fabric.strategy.precision.state_dict().get("scale", 1.0)
        return (
            f"the {wrong} in process {self.fabric.global_rank}, with a scale of {scale}, of {', '.join(files)}. Look "
            "for damaged files, lower training.lr, train with precision: 32-true, or skip such updates with "
            "training.not_finite: skip"
        )

    def clip(self) -> Tensor:
        """Clip the norm of the gradient, if `grad_clip` is set, and return the original norm."""
        norm: Any = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=self.settings.grad_clip or math.inf, error_if_nonfinite=False
        )
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole

    @property
    def precision(self) -> str:
        """Fabric's name for the precision."""
        return str(self.fabric.strategy.precision.precision)

    def validate(self, songs: Sequence[Song], log: Log | None) -> dict[str, float]:
        """Score the averaged weights on whole songs; save them as `best.ckpt` unless earlier ones scored better."""
        weights = self.average.gather()
        model = self.whole_model(weights).to(self.fabric.device)
        dtype = DTYPES.get(self.precision)
        table = score_songs(self.fabric, model, songs, self.settings, dtype, self.reading)
        scores = means(table, self.settings.metric_for_best)
        mean = sum(scores.values()) / len(scores) if scores else -math.inf
        if self.updates:
            self.plateau.step(mean)
        if mean > self.best:
            self.best = mean
            if self.fabric.is_global_zero:
                self.write_checkpoint("best", weights)
        if log is not None:
            write_table(self.folder / "scores" / f"{self.updates:09}.csv", table, self.settings.metrics)
            for metric in self.settings.metrics:
                by_stem = means(table, metric)
                average = sum(by_stem.values()) / len(by_stem) if by_stem else -math.inf
                named = {f"{metric}/{stem}": score for stem, score in {**by_stem, "mean": average}.items()}
                log.numbers(named, self.updates)
            best = self.settings.metric_for_best
            log.numbers(
                {f"{best}_by_song/{song}/{stem}": values[best] for song, stem, values in table if best in values},
                self.updates,
            )
            self._log_excerpt(model, songs[0], log, dtype)
        self.fabric.barrier()
        return scores

    def _log_excerpt(self, model: BandSplitRotator, song: Song, log: Log, dtype: torch.dtype | None) -> None:
        settings = self.settings
        targets = [settings.instruments.index(stem) for stem in settings.stems]
        mixture, truth = read_song(song, targets, channels_of(model), self.reading)
        # From one third on: at the beginning, songs seldom have all stems.
        length = min(mixture.shape[-1], round(settings.validation_excerpt * settings.sample_rate))
        start = (mixture.shape[-1] - length) // 3
        mixture, truth = mixture[:, start : start + length], truth[..., start : start + length]
        estimates = separate_with(model, mixture, settings, dtype)
        truth_by_stem = dict(zip(settings.stems, truth, strict=True))
        estimates_by_stem = dict(zip(settings.stems, estimates, strict=True))
        log_excerpt(log, model, mixture, truth_by_stem, estimates_by_stem, settings.sample_rate, self.updates)


def _closable(batches: Iterator[Batch]) -> Generator[Batch]:
    """Return a generator that drops the loader's iterator when closed, which ends the workers."""
    yield from batches


def _leave_signals_to_the_run(_worker: int) -> None:
    """Make a worker ignore signals: otherwise it would end the run in the middle of an update."""
    ignore_signals()


@contextmanager
def _out_of_memory_explained(settings: Settings) -> Generator[None]:
    """Explain what to lower if a device is out of memory."""
    try:
        yield
    except RuntimeError as error:
        # A CPU's error has no class of its own.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise StoppedError(
            f"the device has too little memory for training.batch_size={settings.batch_size} segments of "
            f"audio.chunk_size={settings.chunk_size} samples: lower the first, and raise "
            "training.gradient_accumulation_steps as much; say model.use_torch_checkpoint: true; train with precision: "
            f"bf16-mixed; or lower the second ({str(error).partition('. ')[0]})"
        ) from error
