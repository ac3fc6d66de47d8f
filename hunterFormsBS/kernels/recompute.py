"""Activation checkpointing: the backward pass recomputes what was not stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar, cast

import torch
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from hunterFormsBS.kernels.seam import repeatable

P = ParamSpec("P")
R = TypeVar("R")


def checkpointed(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap `function` so that only its arguments are stored for the backward pass, which runs it again."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        return cast(R, checkpoint(partial(repeatable(function), **kwargs), *args, use_reentrant=False))

    return run
