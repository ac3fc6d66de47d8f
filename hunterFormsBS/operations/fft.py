"""Fourier transforms for devices without them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor

P = ParamSpec("P")


def lacks_fft(device: torch.device) -> bool:
    """Tell whether `device` is MPS on a system before macOS 14, which has no FFT kernels."""
    return device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0)


def where_there_is_fft(transform: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a function on the CPU if its tensor's device has no Fourier transform, and move the result back."""

    @wraps(transform)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next(arg.device for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor))
        if not lacks_fft(device):
            return transform(*args, **kwargs)
        moved: Any = [arg.cpu() if isinstance(arg, Tensor) else arg for arg in args]
        named: Any = {name: arg.cpu() if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()}
        return cast("Callable[..., Tensor]", transform)(*moved, **named).to(device)

    return run
