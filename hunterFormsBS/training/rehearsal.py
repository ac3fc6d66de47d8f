"""A rehearsal of a run, undone afterwards: one update, one chunk of a validation and one save. Mistakes show early."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from hunterFormsBS.training.averaging import local
from hunterFormsBS.training.metrics import measure
from hunterFormsBS.training.run import Batch, Run
from hunterFormsBS.training.states import remove
from hunterFormsBS.training.truth import Song, read_song
from hunterFormsBS.training.validation import DTYPES, channels_of, separate_with


def rehearse(run: Run, batch: Batch, songs: Sequence[Song]) -> None:
    """Do everything that a run does once, then restore the run bit for bit.

    Parameters
    ----------
    run : Run
    batch : (Tensor, Tensor)
        The first batch of this process.
    songs : sequence of Song
        Songs for validation; without any it is skipped.

    Raises
    ------
    StoppedError, ValueError, ImportError
        Whatever would have stopped the run later.
    """
    before = _Snapshot(run)
    folder = run.folder
    run.folder = folder / "rehearsal.unfinished"  # on the disk for the states
    try:
        if run.fabric.is_global_zero:
            remove(run.folder)
        run.update(repeat(batch))
        if songs:
            _validate(run, songs[0])
        run.save()
    finally:
        if run.fabric.is_global_zero:
            remove(run.folder)
        run.folder = folder
        before.restore()


def _validate(run: Run, song: Song) -> None:
    """Score one chunk of a song, or a second, which some metrics need."""
    settings = run.settings
    model = run.whole_model(run.average.gather()).to(run.fabric.device)
    targets = [settings.instruments.index(stem) for stem in settings.stems]
    mixture, truth = read_song(song, targets, channels_of(model), run.reading)
    length = max(settings.chunk_size, settings.sample_rate)
    start = max(0, mixture.shape[-1] - length) // 2
    mixture, truth = mixture[..., start : start + length], truth[..., start : start + length]
    estimates = separate_with(model, mixture, settings, DTYPES.get(run.precision))
    estimates, truth, mixture = (each.float().to(run.fabric.device) for each in (estimates, truth, mixture))
    measure(settings.metrics, estimates, truth, mixture, settings.sample_rate)


class _Snapshot:
    """A copy in main memory of everything that an update changes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        optimizer = run.optimizer.optimizer
        self.weights = [_copy(parameter) for parameter in run.model.parameters()]
        self.averages = {name: _copy(average) for name, average in run.average.averages.items()}
        self.state: dict[Tensor, dict[str, Any]] = {
            parameter: {
                key: _copy(value) if isinstance(value, Tensor) else deepcopy(value) for key, value in each.items()
            }
            for parameter, each in optimizer.state.items()
        }
        self.groups = [_settings_of(group) for group in optimizer.param_groups]
        self.precision = deepcopy(run.fabric.strategy.precision.state_dict())
        self.counted = run.updates, run.skipped, run.best

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything."""
        run, optimizer = self.run, self.run.optimizer.optimizer
        for parameter, weights in zip(run.model.parameters(), self.weights, strict=True):
            local(parameter).copy_(weights)
            parameter.grad = None
        for name, average in self.averages.items():
            run.average.averages[name].copy_(average)
        for parameter in list(optimizer.state):
            if parameter not in self.state:
                del optimizer.state[parameter]
                continue
            for key, value in self.state[parameter].items():
                now = optimizer.state[parameter][key]
                if isinstance(now, Tensor):
                    local(now).copy_(value)
                else:
                    optimizer.state[parameter][key] = value
        for group, settings in zip(optimizer.param_groups, self.groups, strict=True):
            for key in _settings_of(group).keys() - settings.keys():
                del group[key]
            group.update(settings)
        run.fabric.strategy.precision.load_state_dict(self.precision)
        run.updates, run.skipped, run.best = self.counted


def _copy(tensor: Tensor) -> Tensor:
    """Copy this process's part of a tensor."""
    return local(tensor).to("cpu", copy=True)


def _settings_of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: deepcopy(value) for key, value in group.items() if key != "params"}
