"""Devices by their names: which one `auto` is, and whether anything can be computed on one."""

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
        As PyTorch names devices, or `auto` for the fastest kind that there is.
    local_rank : int, default None
        Which process of a job this is on its machine. Each gets a GPU of its own where the name states none.

    Raises
    ------
    UsageError
        If nothing can be computed there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and local_rank is not None and (count := torch.cuda.device_count()):
        name = f"cuda:{local_rank % count}"
    if (reason := unusable(name)) is not None:
        raise UsageError(f"--device {name} cannot be used here: {reason}")
    return torch.empty(0, device=name).device


def unusable(device: torch.device | str) -> str | None:
    """Return why nothing can be computed on a device, in one short line; None if it can."""
    try:
        kind = torch.empty(0, device=device).device.type
    except (AssertionError, ImportError, RuntimeError) as error:
        return printable(str(error).strip().splitlines()[0].split(". ")[0], 200)
    return "it does not compute: use cpu, cuda or mps" if kind == "meta" else None
