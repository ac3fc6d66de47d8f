"""Rows of the table of surroundings that need two processes: DDP, FSDP2 and tensor parallelism of every kind of model.

Run as a program, this file is one of the two processes (see `main`); the tests start it once and look at what it wrote.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hunterFormsBS import BandSplitRotator  # noqa: E402
from hunterFormsBS.attend import Attention, FeedForward  # noqa: E402
from hunterFormsBS.blocks.positions import PositionEmbedding  # noqa: E402
from hunterFormsBS.kernels.seam import reference  # noqa: E402
from tests.configurations import COLUMNS  # noqa: E402

# gloo, the CPU's way of communicating, cannot scatter sums before.
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.process,
    pytest.mark.skipif(Version(torch.__version__).release < (2, 7), reason="FSDP2 on a CPU needs PyTorch 2.7"),
]
Numbers = dict[str, Tensor]
SHARED = "biases that all layers share have several owners: FSDP2 takes the model as one unit"
CANNOT: dict[tuple[str, str], str] = {
    ("FSDP2 of sublayers", "RoFormer with shared biases"): SHARED,
    ("FSDP2 of linear maps", "RoFormer with shared biases"): SHARED,
    ("tensor parallel", "RoFormer with shared biases"): "biases that all layers share would be divided",
}
"""What cannot be, and why; `docs/training.md` says so too."""


def build(name: str) -> BandSplitRotator:
    torch.manual_seed(0)
    model = BandSplitRotator(**COLUMNS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def data(model: BandSplitRotator) -> tuple[Tensor, Tensor]:
    y = torch.randn(4, model.num_stems, model.audio_channels, 320, generator=torch.Generator().manual_seed(1))
    return y.sum(1), y


def learn(model: nn.Module, x: Tensor, y: Tensor) -> Numbers:
    loss = model(x, y)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


# ---- what each of the two processes does


def is_mixed(wrap: str) -> bool:
    return "mixed" in wrap


def in_ddp(model: BandSplitRotator, **options: Any) -> nn.Module:
    return DistributedDataParallel(model, **options)


def flat(model: nn.Module) -> None:
    """Make vectors of scalars, which FSDP2 does not shard; the hyper-connections library has some."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                setattr(module, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))


def in_fsdp2(model: BandSplitRotator, *kinds: type[nn.Module], **options: Any) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh("cpu", (2,))
    flat(model)
    if kinds:
        for embedding in [module for module in model.modules() if isinstance(module, PositionEmbedding)]:
            fully_shard(embedding, mesh=mesh, reshard_after_forward=False, **options)
            register_fsdp_forward_method(embedding, "table")
        for module in [module for module in model.modules() if isinstance(module, kinds)]:
            fully_shard(module, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)  # type: ignore[no-any-return]


def by_recipe(model: BandSplitRotator) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh

    from hunterFormsBS.training.engine import shard

    return shard(model, init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel")))


def mixed(model: BandSplitRotator) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for module in [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]:
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))  # whose statistics stay in float32, as its weights must
    return in_fsdp2(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))


def offloaded(model: BandSplitRotator) -> nn.Module:
    from torch.distributed.fsdp import CPUOffloadPolicy

    return in_fsdp2(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


def in_tensor_parallel(model: BandSplitRotator) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh

    from hunterFormsBS.training.tensorParallel import split_heads

    return split_heads(model, init_device_mesh("cpu", (2,)))


WRAPS: dict[str, Callable[[BandSplitRotator], nn.Module]] = {
    "DDP, static graph": lambda model: in_ddp(model, static_graph=True),
    "DDP, unused parameters": lambda model: in_ddp(model, find_unused_parameters=True),
    "DDP, bucket views": lambda model: in_ddp(model, gradient_as_bucket_view=True),
    "FSDP2 of the model": in_fsdp2,
    "FSDP2 of transformers": by_recipe,
    "FSDP2 of sublayers": lambda model: in_fsdp2(model, Attention, FeedForward),
    "FSDP2 of linear maps": lambda model: in_fsdp2(model, nn.Linear),
    "FSDP2 with mixed precision": mixed,
    "FSDP2 with CPU offload": offloaded,
    "tensor parallel": in_tensor_parallel,
}


def whole(value: Any) -> Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def numbers(wrap: str, name: str, rank: int) -> Any:
    model = build(name)
    x, y = data(model)
    if wrap != "tensor parallel":
        x, y = x.chunk(2)[rank], y.chunk(2)[rank]
    if not is_mixed(wrap):  # whose numbers are those of one process but for rounding, which some norms amplify
        model, x, y = model.double(), x.double(), y.double()
    wrapped = WRAPS[wrap](model)
    result = {key.removeprefix("module."): whole(value) for key, value in learn(wrapped, x, y).items()}
    if wrap != "tensor parallel":
        dist.all_reduce(result["loss"])
        result["loss"] /= 2
        return result
    from hunterFormsBS.training.tensorParallel import whole_rows

    return {key: whole_rows(value, 2) if key.endswith("to_qkv.weight") else value for key, value in result.items()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    dist.init_process_group("gloo")
    written: dict[str, Any] = {}
    for wrap in WRAPS:
        for name in COLUMNS:
            if (wrap, name) in CANNOT:
                continue
            try:
                written[f"{wrap}: {name}"] = numbers(wrap, name, dist.get_rank())
            except Exception as error:  # noqa: BLE001  # the test says which
                written[f"{wrap}: {name}"] = f"{type(error).__name__}: {error}"
    if dist.get_rank() == 0:
        torch.save(written, folder / "written.pt")
    dist.barrier()
    dist.destroy_process_group()


# ---- the tests


@pytest.fixture(scope="module")
def written(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=1200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)[-5000:]
    result: dict[str, Any] = torch.load(folder / "written.pt", weights_only=True)
    return result


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_two_processes_compute_what_one_does(wrap: str, name: str, written: dict[str, Any]) -> None:
    if reason := CANNOT.get((wrap, name)):
        pytest.skip(reason)
    ours, model = written[f"{wrap}: {name}"], build(name)
    assert isinstance(ours, dict), ours
    x, y = data(model)
    with reference():
        expected = learn(model.double(), x.double(), y.double())
        error = 0.0
        if is_mixed(wrap):  # bfloat16 in one process is as far away
            again = learn(build(name).bfloat16(), x.bfloat16(), y.bfloat16())
            error = max(float((again[key] - expected[key]).abs().max()) for key in expected)
    scale = max(float(grad.abs().max()) for key, grad in expected.items() if key != "loss")
    tolerance = max(0.05, 3 * error / scale) if is_mixed(wrap) else 1e-9
    assert float(ours["loss"]) == pytest.approx(float(expected["loss"]), rel=tolerance)
    local = {key for key in expected if wrap == "tensor parallel" and "pope_embed.bias" in key}
    assert ours.keys() == expected.keys()
    for key in expected.keys() - local - {"loss"}:
        difference = (ours[key].reshape(expected[key].shape) - expected[key]).abs().max()
        assert float(difference) <= tolerance * scale, key
    for key in local:  # the first process has the first heads
        torch.testing.assert_close(ours[key], expected[key].chunk(2)[0], rtol=tolerance, atol=tolerance * scale)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
