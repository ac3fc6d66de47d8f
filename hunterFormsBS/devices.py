"""Devices by name: what `auto` selects, and whether a device works."""

from __future__ import annotations

import torch

from hunterFormsBS.failures import UsageError
from hunterFormsBS.printable import printable

__all__ = ["find_device", "unusable"]


def find_device(name: str, *, local_rank: int | None = None) -> torch.device:
    """Return the device that the option `--device` names.

    Parameters
    ----------
    name : str
        PyTorch's name of a device, or `auto` for the fastest available kind.
    local_rank : int, default None
        Rank of this process on its machine. Each process gets its own GPU unless the name states one.

    Raises
    ------
    UsageError
        If the device does not work.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and local_rank is not None and (count := torch.cuda.device_count()):
        name = f"cuda:{local_rank % count}"
    if (reason := unusable(name)) is not None:
        raise UsageError(f"--device {name} cannot be used here: {reason}")
    return torch.empty(0, device=name).device


def unusable(device: torch.device | str) -> str | None:
    """Return in one short line why a device does not work; None if it does."""
    try:
        kind = torch.empty(0, device=device).device.type
    except (AssertionError, ImportError, RuntimeError) as error:
        return printable(str(error).strip().splitlines()[0].split(". ")[0], 200)
    return "it does not compute: use cpu, cuda or mps" if kind == "meta" else None
