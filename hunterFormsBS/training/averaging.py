"""Exponential moving average of weights, also of sharded weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hunterFormsBS.training.sharding import like


class AveragedWeights:
    """The exponential moving average of a model's parameters.

    Each process averages its own parameters or shards. PyTorch's `AveragedModel`, whose averaging function this uses,
    copies the module, which is impossible for a sharded module.

    Parameters
    ----------
    model : nn.Module
        After sharding, if any.
    momentum : float
        Factor of the old average in an update. Early on it is lower, `(1 + updates) / (10 + updates)`, so that initial
        random weights are soon forgotten. 0: no averaging.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.model = model
        self.momentum = momentum
        self.averages = {name: local(parameter).clone() for name, parameter in model.named_parameters()}

    def update(self, updates: int) -> None:
        """Update the average after a number of updates of the weights."""
        momentum = min(self.momentum, (1 + updates) / (10 + updates))
        weights = [local(parameter) for parameter in self.model.parameters()]
        update: Callable[..., None] = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call, unused-ignore]
        update(list(self.averages.values()), weights, updates)

    @torch.no_grad()
    def gather(self) -> dict[str, Tensor]:
        """Return full tensors on the CPU. All processes must call it together."""
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
        """Load the result of `gather`, for any numbers of processes."""
        for name, parameter in self.model.named_parameters():
            self.averages[name].copy_(local(like(whole[name], parameter)))


def copy_weights(whole: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy full tensors, by parameter name, into a model that is not sharded."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(like(whole[name], parameter))


def local(parameter: Tensor) -> Tensor:
    """Return this process's part of a parameter, without its gradient."""
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()
