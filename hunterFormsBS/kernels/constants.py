"""Constant index tensors, on every device that needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hunterFormsBS.kernels.internals import constant_when_compiled, is_transformed


class Constants:
    """Integer tensors by name, made on first use on each device.

    They are not buffers: averages over buffers, as in `torch.optim.swa_utils.AveragedModel`, would truncate them, and
    `to_empty` would leave them uninitialised.

    Parameters
    ----------
    **values : sequence of int
        One for each tensor.
    """

    def __init__(self, **values: Sequence[int]) -> None:
        self._values: Mapping[str, tuple[int, ...]] = {name: tuple(numbers) for name, numbers in values.items()}
        self._made: dict[str, dict[str, Tensor]] = {}
        self._keeps(torch.device("cpu"))

    def on(self, device: torch.device, name: str) -> Tensor:
        """Return a tensor on `device`."""
        if self._keeps(device):
            return self._made[str(device)][name]
        return torch.tensor(self._values[name], device=device)

    @constant_when_compiled
    def _keeps(self, device: torch.device) -> bool:
        """Make all tensors for `device` unless they exist, and tell whether they may be kept."""
        if type(torch.empty(0, device=device)) is not Tensor:
            return False  # Fake tensors are temporary.
        if str(device) not in self._made:
            if is_transformed():
                return False  # Tensors made in a transformation end with it.
            # Not inference tensors, which cannot take part in training later.
            with torch.inference_mode(False):
                made = {name: torch.tensor(numbers, device=device) for name, numbers in self._values.items()}
            # The compiler treats the sizes of parameters as fixed, those of other tensors as dynamic.
            self._made[str(device)] = {name: nn.Parameter(one, requires_grad=False) for name, one in made.items()}
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle only the values."""
        return {"_values": self._values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the tensors anew."""
        self._values, self._made = state["_values"], {}
        self._keeps(torch.device("cpu"))
