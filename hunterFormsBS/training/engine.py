"""Lightning Fabric for one process, several, or several with sharded weights (FSDP2)."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from hunterFormsBS.attend import Transformer
from hunterFormsBS.blocks.positions import PositionEmbedding
from hunterFormsBS.installation import how_to_install

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.strategy import Strategy

Result = TypeVar("Result")

# Fabric takes a second to import, so it is imported on use.


def make_fabric(
    *, accelerator: str, devices: str, num_nodes: int, strategy: str, precision: str | None, use_amp: bool
) -> Fabric:
    """Set up Fabric; under `torchrun` the number of processes is torchrun's.

    Parameters
    ----------
    accelerator : str
        `cpu`, `cuda`, `mps` or `auto`.
    devices : str
        Processes on this machine, or `auto`: all GPUs, or one process on a CPU.
    num_nodes : int
        Machines.
    strategy : {'auto', 'ddp', 'fsdp2'}
        'auto' is one process or DDP.
    precision : str or None
        Fabric's; None: by `use_amp`.
    use_amp : bool
        bfloat16 on a GPU.

    Raises
    ------
    ImportError
        If Lightning Fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
    except ImportError as error:
        raise ImportError(f"training runs on Lightning Fabric: {how_to_install('train')} ({error})") from error

    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    local = os.environ.get("LOCAL_WORLD_SIZE", devices)
    automatic = torch.cuda.device_count() if accelerator == "cuda" else 1
    num_devices = automatic if local == "auto" else int(local)
    world_size = int(os.environ.get("WORLD_SIZE", num_devices * num_nodes))
    if precision is None:
        precision = "bf16-mixed" if use_amp and accelerator == "cuda" else "32-true"
    chosen: str | Strategy = "ddp" if strategy == "auto" and world_size > 1 else strategy
    if strategy == "fsdp2":
        chosen = ModelParallelStrategy(shard, data_parallel_size=world_size, tensor_parallel_size=1)
        # The transformers return views, which are never changed in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return Fabric(
        accelerator=accelerator,
        devices=num_devices,
        num_nodes=num_nodes,
        strategy=chosen,
        precision=cast(Any, precision),
    )


def is_sharded(fabric: Fabric) -> bool:
    """Tell whether weights are sharded over the processes."""
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def in_processes(fabric: Fabric, work: Callable[[], Result]) -> Result:
    """Start the processes, run the work in each, and destroy their group at the end.

    Without that a process may be aborted while the threads of its connections run. Everything that the work made must
    be deleted before, after an error too: if DDP's reducer held the last reference to the group, it would wait for
    these threads with the interpreter's lock, for which they may wait.
    """
    fabric.launch()
    try:
        return work()
    except BaseException as error:
        clear_frames(error.__traceback__)
        raise
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()
            torch.distributed.destroy_process_group()


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard the parameters of each transformer, and then the rest, over the processes.

    All transformers of an axis share one position embedding, and FSDP2 refuses a parameter with two owners. It cannot
    belong to the first transformer, which gathers it only for itself, nor be left out, because the learned bias of PoPE
    would get another gradient in each process. So each embedding, a few hundred numbers, is its own unit, gathered when
    a transformer needs its table, and kept until the end of the backward pass. Shared biases belong to all
    transformers, so a model with them is one unit.
    """
    try:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as error:
        raise ImportError(f"--strategy fsdp2 needs PyTorch 2.7 or newer: this is {torch.__version__}") from error

    data_parallel = mesh["data_parallel"]
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:  # FSDP2 shards vectors; the hyper-connections library has scalars
                setattr(module, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
    embeddings = [module for module in model.modules() if isinstance(module, PositionEmbedding)]
    transformers = [module for module in model.modules() if isinstance(module, Transformer)]
    for embedding in embeddings:
        fully_shard(embedding, mesh=data_parallel, reshard_after_forward=False)
        register_fsdp_forward_method(embedding, "table")
    for transformer in transformers if getattr(model, "shared_qkv_bias", None) is None else ():
        fully_shard(transformer, mesh=data_parallel)
    fully_shard(model, mesh=data_parallel)
    return model


def gather(fabric: Fabric, mine: Any) -> list[Any]:
    """Return the objects of all processes, in order of rank."""
    if fabric.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, mine)  # pyright: ignore[reportUnknownMemberType]
    return everyone


def mean_of_processes(fabric: Fabric, values: Tensor) -> Tensor:
    """Return the mean of a value over the processes."""
    # It also reduces containers, which do not occur here.
    return cast("Tensor", fabric.all_reduce(values, reduce_op="mean"))  # pyright: ignore[reportUnknownMemberType]


def largest_of_processes(fabric: Fabric, number: int) -> int:
    """Return the maximum of a number over the processes."""
    if fabric.world_size == 1:
        return number
    mine = torch.tensor(number, device=fabric.device)
    return int(cast("Tensor", fabric.all_reduce(mine, reduce_op="max")))  # pyright: ignore[reportUnknownMemberType]


def compile_transformers(model: nn.Module, backend: bool | str) -> None:
    """Compile each transformer in place: keys of the state dict do not change, and all strategies allow it."""
    if not backend:
        return
    for module in model.modules():
        if isinstance(module, Transformer):
            module.compile(backend="inductor" if backend is True else backend)  # pyright: ignore[reportUnknownMemberType]
