"""Where the numbers, sounds and pictures of a run go: TensorBoard or Weights & Biases, by Fabric's logger protocol."""

from __future__ import annotations

import os
import re
import uuid
from argparse import Namespace
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import soundfile
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor

from hunterFormsBS.training.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECT = "hunterFormsBS"
"""Of Weights & Biases, unless WANDB_PROJECT names another."""


class MediaLogger(Protocol):
    """A logger of Fabric's that also takes sounds and pictures."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers by name."""

    def log_audio(self, name: str, audio: Tensor, sample_rate: int, step: int) -> None:
        """Log a sound, `(1, t)`."""

    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a picture."""

    def save(self) -> None:
        """Have what was logged on the disk."""

    def finalize(self, status: str) -> None:
        """End."""


class TensorBoard(TensorBoardLogger):
    """Fabric's logger for TensorBoard, with sounds and pictures."""

    def log_audio(self, name: str, audio: Tensor, sample_rate: int, step: int) -> None:
        """Log a sound, `(1, t)`."""
        writer = cast("Any", self).experiment  # whose type is that of one of two packages
        writer.add_audio(name, audio, step, sample_rate=sample_rate)

    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a picture."""
        writer = cast("Any", self).experiment  # whose type is that of one of two packages
        writer.add_figure(name, figure, step)


class WeightsAndBiases(Logger):
    """A logger of Fabric's for Weights & Biases, as its environment variables say, `WANDB_MODE` for one.

    Parameters
    ----------
    folder : Path
        Of the run; `wandb/` in it holds the run's identifier and, with WANDB_MODE=offline, everything.
    configuration : mapping
    resumed : bool
        Whether to go on with the run whose identifier is in the folder.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any], *, resumed: bool) -> None:
        identifier = folder / "wandb" / "id"
        if not (resumed and identifier.exists()):
            identifier.parent.mkdir(parents=True, exist_ok=True)
            identifier.write_text(uuid.uuid4().hex[:8], encoding="ascii")
        self._wandb: Any = import_module("wandb")
        self.experiment: Any = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", folder.resolve().name),
            id=identifier.read_text(encoding="ascii"),
            resume="allow",
            dir=str(folder),
            config=dict(configuration),
            # What the run prints stays where it is printed.
            settings=self._wandb.Settings(console="off"),
        )

    @property
    def name(self) -> str:
        """The project."""
        return str(self.experiment.project)

    @property
    def version(self) -> str:
        """The run's identifier."""
        return str(self.experiment.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers by name."""
        self.experiment.log(dict(metrics), step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_args: Any, **_kwargs: Any) -> None:
        """Add to the configuration of the run."""
        self.experiment.config.update(vars(params) if isinstance(params, Namespace) else params)

    def log_audio(self, name: str, audio: Tensor, sample_rate: int, step: int) -> None:
        """Log a sound, `(1, t)`."""
        sound = self._wandb.Audio(audio[0].numpy(force=True), sample_rate=sample_rate)
        self.experiment.log({name: sound}, step=step)

    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a picture."""
        self.experiment.log({name: self._wandb.Image(figure)}, step=step)

    def finalize(self, status: str) -> None:
        """End the run there."""
        self.experiment.finish(exit_code=int(status != "success"))


class Log:
    """What a run logs: to a logger, and to its folder, numbers in `history.jsonl` and what came last in `excerpt/`.

    Parameters
    ----------
    logger : MediaLogger
    folder : Path
        Of the run.
    since : int
        See `History`.
    """

    def __init__(self, logger: MediaLogger, folder: Path, since: int) -> None:
        self.logger = logger
        self.history = History(folder / "history.jsonl", since)
        self._excerpt = folder / "excerpt"

    def numbers(self, values: Mapping[str, float], update: int) -> None:
        """Log numbers by name."""
        if values:
            self.logger.log_metrics(values, update)
            self.history.add(values, update)

    def sound(self, name: str, audio: Tensor, sample_rate: int, update: int) -> None:
        """Log a sound, `(1, t)`."""
        self.logger.log_audio(name, audio, sample_rate, update)
        samples = audio[0].numpy(force=True)
        soundfile.write(str(self._file(name, "flac")), samples, sample_rate)  # pyright: ignore[reportUnknownMemberType]

    def picture(self, name: str, figure: Figure, update: int) -> None:
        """Log a picture."""
        self.logger.log_figure(name, figure, update)
        figure.savefig(self._file(name, "png"))  # pyright: ignore[reportUnknownMemberType]

    def _file(self, name: str, suffix: str) -> Path:
        self._excerpt.mkdir(exist_ok=True)
        return self._excerpt / (re.sub(r"[^\w -]", " ", name) + f".{suffix}")

    def flush(self) -> None:
        """Have what was logged on the disk."""
        self.logger.save()
        self.history.flush()

    def close(self, *, complete: bool) -> None:
        """End."""
        self.history.flush()
        self.logger.finalize("success" if complete else "failed")


def open_log(name: str, folder: Path, configuration: Mapping[str, Any], *, since: int | None) -> Log:
    """Open the log of a run.

    Parameters
    ----------
    name : {'tensorboard', 'wandb'}
    folder : Path
        Of the run.
    configuration : mapping
        What Weights & Biases shows of the run.
    since : int, optional
        The first update of a run that goes on: what a killed process logged of it and later ones is taken back. Weights
        & Biases takes nothing back; it leaves out what comes a second time.
    """
    logger: MediaLogger
    if name == "wandb":
        logger = WeightsAndBiases(folder, configuration, resumed=since is not None)
    else:
        logger = TensorBoard(folder, name="", version="tensorboard", purge_step=since)
    return Log(logger, folder, since or 0)
