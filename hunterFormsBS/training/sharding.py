"""Gathering and sharding tensors, so that states on disk are the same for all strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any, keep: bool = True) -> Any:
    """Return a value with all tensors in its containers gathered, on the CPU. All processes must call it together.

    Parameters
    ----------
    value
        Containers, tensors and anything else.
    keep : bool
        False in processes that need no tensors: each is dropped once the others have it.
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
    """Return a full tensor sharded like a parameter: this process's part.

    A scalar is a vector of one where `engine.shard` made one of the parameter.
    """
    shaped = tensor.to(parameter.device).view(parameter.shape)
    if isinstance(parameter, DTensor):
        return distribute_tensor(shaped, parameter.device_mesh, parameter.placements)
    return shaped
