"""Tensor parallelism: each process computes some attention heads and some hidden features of feedforward networks."""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from hunterFormsBS.attend import Attention, FeedForward
from hunterFormsBS.blocks.positions import PolarEmbedding


def split_heads(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Divide softmax attention and feedforward networks of a model among the processes of `mesh`; replicate the rest.

    The rows of `to_qkv` are queries of all heads, then keys, then values. They are reordered so that each process gets
    the rows of its heads; `whole_rows` undoes that for a checkpoint.

    Parameters
    ----------
    model : nn.Module
        A `BandSplitRotator`, or layers of one. It is changed.
    mesh : DeviceMesh
        One-dimensional.

    Raises
    ------
    ValueError
        If heads or hidden features cannot be divided, or biases are shared.
    """
    if getattr(model, "shared_qkv_bias", None) is not None:
        raise ValueError(
            "use_shared_bias=True gives all layers the same biases, which tensor parallelism would divide for each: "
            "use DDP or FSDP2."
        )
    processes, modules = mesh.size(), list(model.modules())
    divided = {"heads": [layer.heads for layer in modules if isinstance(layer, Attention)]}
    divided["hidden features"] = [_expand(layer).out_features for layer in modules if isinstance(layer, FeedForward)]
    for name, numbers in divided.items():
        for number in numbers:
            if number % processes:
                raise ValueError(f"{number} {name} cannot be divided by {processes} processes: use a divisor of them.")
    for module in modules:
        if isinstance(module, Attention):
            _split_attention(module, mesh)
        elif isinstance(module, PolarEmbedding):
            own = module.bias.detach().chunk(processes)[mesh.get_local_rank()]
            module.bias = nn.Parameter(own.clone())
        elif isinstance(module, FeedForward):
            parallelize_module(module, mesh, {"net.1": ColwiseParallel(), "net.4": RowwiseParallel()})
    return model


def whole_rows(weight: Tensor, processes: int) -> Tensor:
    """Return the weight of `to_qkv`, gathered by `full_tensor`, in the order of a model in one process."""
    return rearrange(weight, "(p three r) d -> (three p r) d", three=3, p=processes)


def _expand(layer: FeedForward) -> nn.Linear:
    return cast(nn.Linear, layer.net[1])


def _split_attention(layer: Attention, mesh: DeviceMesh) -> None:
    weight = layer.to_qkv.weight
    with torch.no_grad():
        weight.copy_(rearrange(weight, "(three p r) d -> (p three r) d", three=3, p=mesh.size()))
    plan: dict[str, ParallelStyle] = {
        "to_qkv": ColwiseParallel(),
        "to_gates": ColwiseParallel(),
        "to_out.0": RowwiseParallel(),
    }
    if layer.to_value_residual_mix is not None:
        plan["to_value_residual_mix"] = ColwiseParallel()
    parallelize_module(layer, mesh, plan)
    layer.heads //= mesh.size()
