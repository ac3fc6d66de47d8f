"""Tensor parallelism: each process computes some heads of attention, and some hidden features of feedforwards."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hunterFormsBS.attend import Attention, FeedForward
from hunterFormsBS.blocks.positions import PolarEmbedding


def split_heads(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Divide softmax attention and feedforwards of a model among the processes of `mesh`; all else stays whole.

    The rows of `to_qkv` are queries of all heads, then keys, then values. Half of them are not the rows of half of the
    heads, so that they are put in an order in which they are: `whole_rows` undoes it for a checkpoint.

    Raises
    ------
    ValueError
        If heads or hidden features cannot be divided, or biases are shared.
    """
    if getattr(model, "shared_qkv_bias", None) is not None:
        raise ValueError("use_shared_bias=True: all layers have the same biases, which tensor parallelism would divide")
    processes, rank = mesh.size(), mesh.get_local_rank()
    for layer in [module for module in model.modules() if isinstance(module, Attention)]:
        if layer.heads % processes:
            raise ValueError(f"heads={layer.heads} cannot be divided by {processes} processes: use a divisor of them")
        weight = layer.to_qkv.weight
        with torch.no_grad():
            weight.copy_(_by_process(weight, processes))
        plan = {"to_qkv": ColwiseParallel(), "to_gates": ColwiseParallel(), "to_out.0": RowwiseParallel()}
        if layer.to_value_residual_mix is not None:
            plan["to_value_residual_mix"] = ColwiseParallel()
        parallelize_module(layer, mesh, dict(plan))
        layer.heads //= processes
    for embedding in [module for module in model.modules() if isinstance(module, PolarEmbedding)]:
        embedding.bias = nn.Parameter(embedding.bias.detach().chunk(processes)[rank].clone())
    for layer in [module for module in model.modules() if isinstance(module, FeedForward)]:
        if layer.net[1].out_features % processes:
            raise ValueError(f"{layer.net[1].out_features} hidden features cannot be divided by {processes} processes")
        parallelize_module(layer, mesh, {"net.1": ColwiseParallel(), "net.4": RowwiseParallel()})
    return model


def _by_process(weight: Tensor, processes: int) -> Tensor:
    """Bring rows of queries, keys and values together that one process needs."""
    return rearrange(weight, "(three p r) d -> (p three r) d", three=3, p=processes)


def whole_rows(weight: Tensor, processes: int) -> Tensor:
    """Return the weight of `to_qkv`, gathered by `full_tensor`, in the order that a model in one process has."""
    return rearrange(weight, "(p three r) d -> (three p r) d", three=3, p=processes)
