"""The learning rate at each update."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hunterFormsBS.training.settings import Settings


def learning_rate_factor(update: int, settings: Settings) -> float:
    """Return the factor of the peak learning rate: a linear rise, then `settings.schedule`.

    For `ReduceLROnPlateau` this is only the rise; `Plateau` does the rest. Music-Source-Separation-Training's linear
    schedule rises from zero, and would fall to zero after as many updates as there are batches in the run.
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
        No effect unless the schedule is `ReduceLROnPlateau`.
    """

    def __init__(self, settings: Settings) -> None:
        self.on = settings.schedule == "ReduceLROnPlateau"
        # A dummy optimizer: its learning rate is the factor.
        self.optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self.scheduler = ReduceLROnPlateau(
            self.optimizer, "max", factor=settings.reduce_factor, patience=settings.patience or 0
        )

    @property
    def factor(self) -> float:
        """The factor of the learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def start_at(self, factor: float) -> None:
        """Start at the factor that an earlier run had reached."""
        if self.on:
            self.optimizer.param_groups[0]["lr"] = factor

    def step(self, metric: float) -> None:
        """Process the metric of a validation."""
        if self.on:
            self.scheduler.step(metric)  # pyright: ignore[reportUnknownMemberType]

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed run."""
        return {"factor": self.factor, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self.optimizer.param_groups[0]["lr"] = state["factor"]
        patience, factor = self.scheduler.patience, self.scheduler.factor
        self.scheduler.load_state_dict(state["scheduler"])
        # A resumed run may have other settings.
        self.scheduler.patience, self.scheduler.factor = patience, factor
