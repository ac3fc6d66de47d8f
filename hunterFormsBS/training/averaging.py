"""Exponential moving average of weights, also of weights that are sharded over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hunterFormsBS.training.sharding import like


class AveragedWeights:
    """The average of a model's parameters over time.

    Each process keeps the average of what it holds: everything, or its shards. `AveragedModel` of PyTorch, whose
    averaging function this uses, copies the module, which a sharded module does not allow.

    Parameters
    ----------
    model : nn.Module
        After it was sharded, if it is.
    momentum : float
        How much of the average stays at an update. Early on it is less, `(1 + updates) / (10 + updates)`, so that the
        random weights of the beginning are soon forgotten. 0: the average is the weights.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.model = model
        self.momentum = momentum
        self.averages = {name: local(parameter).clone() for name, parameter in model.named_parameters()}

    def update(self, updates: int) -> None:
        """Take in the weights after a number of updates."""
        momentum = min(self.momentum, (1 + updates) / (10 + updates))
        weights = [local(parameter) for parameter in self.model.parameters()]
        update: Callable[..., None] = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call, unused-ignore]
        update(list(self.averages.values()), weights, updates)

    @torch.no_grad()
    def gather(self) -> dict[str, Tensor]:
        """Return whole tensors on the CPU. Every process must call it at the same time."""
        whole: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            average = self.averages[name]
            if isinstance(parameter, DTensor):
                average = DTensor.from_local(
                    average,
                    parameter.device_mesh,
                    parameter.placements,
                    run_check=False,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                ).full_tensor()
            whole[name] = average.cpu()
        return whole

    def load(self, whole: Mapping[str, Tensor]) -> None:
        """Take over what `gather` returned, whatever the number of processes then and now."""
        for name, parameter in self.model.named_parameters():
            self.averages[name].copy_(local(like(whole[name], parameter)))


def copy_weights(whole: Mapping[str, Tensor], model: nn.Module) -> None:
    """Put whole tensors by the names of parameters into a model that is not sharded."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(like(whole[name], parameter))


def local(parameter: Tensor) -> Tensor:
    """Return what this process holds of a parameter, without its gradient."""
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()
