"""Sharded tensors made whole, and whole ones shared out: states on the disk are the same whatever the strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any, keep: bool = True) -> Any:
    """Return a value with all tensors in its containers whole, on the CPU. Every process must call it at the same time.

    Parameters
    ----------
    value
        Containers, tensors and anything else.
    keep : bool
        False in the processes that need no tensors: each is dropped as soon as the others have it.
    """
    if isinstance(value, Tensor):
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        return tensor.detach().cpu() if keep else None
    if isinstance(value, Mapping):
        pairs: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
        return {key: whole(inner, keep) for key, inner in pairs.items()}
    if isinstance(value, (list, tuple)):
        inner = [whole(each, keep) for each in cast("Sequence[Any]", value)]
        return inner if isinstance(value, list) else tuple(inner)
    return value


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor as a parameter is: this process's part of it, where the parameter is sharded.

    A scalar is a vector of one where `engine.shard` made one of the parameter.
    """
    shaped = tensor.to(parameter.device).view(parameter.shape)
    if isinstance(parameter, DTensor):
        return distribute_tensor(shaped, parameter.device_mesh, parameter.placements)
    return shaped
