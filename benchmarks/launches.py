"""How often a function has the device do something: launches as the profiler sees them, operators without one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

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


def operators(function: Callable[[], object]) -> int:
    """Return how many operators one call of `function` runs, about what it launches, or would launch, on a GPU."""
    function()
    counter = _Operators()
    with ExitStack() as stack:
        # Small pieces, which hunterFormsBS prefers on a CPU, are not what it launches on a GPU.
        for name, module in list(sys.modules.items()):
            if name.startswith("hunterFormsBS.") and hasattr(module, "is_eager_on_cpu"):
                stack.enter_context(patch.object(module, "is_eager_on_cpu", lambda _x: False))
        stack.enter_context(counter)
        function()
    return counter.count
