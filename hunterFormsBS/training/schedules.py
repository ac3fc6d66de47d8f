"""What the learning rate is at each update."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hunterFormsBS.training.settings import Settings


def learning_rate_factor(update: int, settings: Settings) -> float:
    """Return what to multiply the peak learning rate by: a linear rise, then what `settings.schedule` says.

    For `ReduceLROnPlateau` this is the rise alone; `Plateau` has the rest. The line of Music-Source-Separation-Training
    rises from zero, and falls to zero at as many updates as there are batches in the run, whatever is accumulated.
    """
    if settings.as_msst and settings.schedule == "linear_scheduler":
        batches, warmup = settings.num_epochs * settings.num_steps, settings.warmup_steps
        if update < warmup:
            return update / warmup
        return max(0.0, (batches - update) / max(1, batches - warmup))
    if update < settings.warmup_steps:
        return (update + 1) / (settings.warmup_steps + 1)
    done = min(1.0, (update - settings.warmup_steps) / max(1, settings.updates - settings.warmup_steps))
    if settings.schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * done)
    return 1.0 - done if settings.schedule == "linear_scheduler" else 1.0


class Plateau:
    """PyTorch's `ReduceLROnPlateau`, as a factor that any schedule can be multiplied by.

    Parameters
    ----------
    settings : Settings
        Without effect unless their schedule is `ReduceLROnPlateau`.
    """

    def __init__(self, settings: Settings) -> None:
        self.on = settings.schedule == "ReduceLROnPlateau"
        # An optimizer of nothing: its learning rate is the factor.
        self.optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self.scheduler = ReduceLROnPlateau(
            self.optimizer, "max", factor=settings.reduce_factor, patience=settings.patience or 0
        )

    @property
    def factor(self) -> float:
        """What to multiply the learning rate by."""
        return float(self.optimizer.param_groups[0]["lr"])

    def start_at(self, factor: float) -> None:
        """Take over what an earlier run had come down to."""
        if self.on:
            self.optimizer.param_groups[0]["lr"] = factor

    def step(self, metric: float) -> None:
        """Take in the metric of a validation."""
        if self.on:
            self.scheduler.step(metric)  # pyright: ignore[reportUnknownMemberType]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"factor": self.factor, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.optimizer.param_groups[0]["lr"] = state["factor"]
        patience, factor = self.scheduler.patience, self.scheduler.factor
        self.scheduler.load_state_dict(state["scheduler"])
        # A resumed run may have other settings.
        self.scheduler.patience, self.scheduler.factor = patience, factor
