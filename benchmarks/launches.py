"""How often a function has the device do something: launches as the profiler sees them, operators without one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from hunterFormsBS.kernels import internals, linear, seam, transformer
from hunterFormsBS.kernels.seam import Where

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
"""Calls of the CUDA runtime and driver that start a kernel or a recorded graph of kernels."""


def launches(function: Callable[[], object]) -> int:
    """Return how many kernels, and recorded graphs of kernels, one call of `function` starts on a CUDA device."""
    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if event.key in LAUNCHES)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count operators that compute something: views do not, nor does dropout, which is for training."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 0 if func.is_view or func is torch.ops.aten.dropout.default else 1
        return func(*args, **(kwargs or {}))


def operators(function: Callable[[], object], device: str = "cpu") -> int:
    """Return how many operators one call of `function` runs, about what it launches, or would launch, on a GPU.

    `device` is where it runs; on a CPU hunterFormsBS is made to take the kernels that it takes on a GPU.
    """
    counter = _Operators()
    with ExitStack() as stack:
        # The counter is to see what runs without a counter.
        stack.enter_context(patch.object(internals, "is_recorded", lambda: False))
        if device == "cpu":
            stack.enter_context(_kernels_of_a_gpu())
        function()
        stack.enter_context(counter)
        function()
    return counter.count


@contextmanager
def _kernels_of_a_gpu() -> Iterator[None]:
    """Have a CPU take the kernels of a GPU, sequences all at once, and PyTorch's own linear maps."""
    with (
        patch.object(seam, "where_of", lambda _tensors: Where.DEVICE),
        patch.object(transformer, "TOKENS_PER_BLOCK", sys.maxsize),
        patch.object(linear, "onednn", lambda _dtype: None),
    ):
        yield
