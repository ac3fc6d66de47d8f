"""Index tensors that never change, on whichever device needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hunterFormsBS.kernels.internals import constant_when_compiled


def device_of_constants() -> torch.device:
    """Return the default device; the CPU in place of the meta device, which holds no values."""
    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device


class Constants:
    """Tensors of integers by name, made on each device that asks for them.

    They are no buffers: averages over a model's buffers, as `torch.optim.swa_utils.AveragedModel` takes them, would
    truncate them, and `to_empty` would leave them without content.

    Parameters
    ----------
    **values : sequence of int
        One for each tensor.
    """

    def __init__(self, **values: Sequence[int]) -> None:
        self._values: Mapping[str, tuple[int, ...]] = {name: tuple(numbers) for name, numbers in values.items()}
        self._made: dict[str, dict[str, Tensor]] = {}

    def on(self, device: torch.device, name: str) -> Tensor:
        """Return a tensor on `device`."""
        if self._keeps(device):
            return self._made[str(device)][name]
        return torch.tensor(self._values[name], device=device)

    @constant_when_compiled
    def _keeps(self, device: torch.device) -> bool:
        """Make all tensors for `device`, unless they are there, and tell whether they may be kept."""
        if str(device) not in self._made:
            # Not inference tensors, which could not take part in training later.
            with torch.inference_mode(False):
                made = {name: torch.tensor(numbers, device=device) for name, numbers in self._values.items()}
            if any(type(tensor) is not Tensor for tensor in made.values()):
                return False  # Fake tensors belong to the mode that is active now.
            # The compiler assumes that sizes of parameters are fixed, and that those of other tensors may vary.
            self._made[str(device)] = {name: nn.Parameter(one, requires_grad=False) for name, one in made.items()}
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the values alone."""
        return {"_values": self._values, "_made": {}}
