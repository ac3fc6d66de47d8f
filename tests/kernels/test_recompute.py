"""Activation checkpointing: what it computes, and what it stores."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hunterFormsBS.kernels.recompute import checkpointed

SavedBytes: TypeAlias = Callable[[], AbstractContextManager[dict[int, int]]]


def counting(calls: list[str]) -> Callable[..., Tensor]:
    def function(x: Tensor, weight: Tensor, *, power: int = 1) -> Tensor:
        calls.append("call")
        return F.dropout(torch.tanh(x @ weight), 0.5).pow(power)

    return function


def test_checkpointed_runs_again_in_the_backward_pass_with_the_same_random_numbers() -> None:
    calls: list[str] = []
    function = counting(calls)
    x, weight = torch.randn(6, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)
    results: list[tuple[Tensor, ...]] = []
    for run in (function, checkpointed(function)):
        torch.manual_seed(3)
        out = run(x, weight, power=3)
        results.append((out, *torch.autograd.grad(out.sum(), (x, weight))))
    assert len(calls) == 1 + 2
    assert all(map(torch.equal, *results))


def test_checkpointed_stores_its_arguments_only(bytes_saved_for_backward: SavedBytes) -> None:
    x, weight = torch.randn(60, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)
    with bytes_saved_for_backward() as saved:
        checkpointed(counting([]))(x, weight)
    # What the checkpoint keeps it keeps in closures; nothing of the function's inside is saved.
    assert not set(saved) - {x.untyped_storage().data_ptr(), weight.untyped_storage().data_ptr()}
    with bytes_saved_for_backward() as saved_by_autograd:
        counting([])(x, weight)
    assert len(saved_by_autograd) > 2


def test_checkpointed_runs_once_and_plainly_without_gradients() -> None:
    calls: list[str] = []
    with torch.no_grad():
        out = checkpointed(counting(calls))(torch.randn(6, 6), torch.randn(6, 6, requires_grad=True))
    assert len(calls) == 1
    assert not out.requires_grad
