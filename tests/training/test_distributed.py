"""Training in two processes is training in one with the double batch: DDP, FSDP2, activation checkpointing.

Run as a program, this file is one of the two processes (see `main`); the tests start it once and look at what it wrote.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
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
from hunterFormsBS.attend import Attention, FeedForward, Transformer  # noqa: E402
from hunterFormsBS.blocks.positions import PositionEmbedding  # noqa: E402
from hunterFormsBS.training.engine import shard  # noqa: E402
from tests import models  # noqa: E402

TINY: dict[str, Any] = models.TINY | {
    "multi_stft_resolutions_window_sizes": (64, 32),
    "num_stems": 3,
    "stereo": True,
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mel": {"freqs_per_bands": None, "num_bands": 4, "sample_rate": 2000},
    "value_residual": {"use_value_residual_learning": True},
    "constant_value_residual": {"use_value_residual_learning": True, "learned_value_residual_mix": False},
    "residual_streams": {"num_residual_streams": 2},
    "constrained_streams": {"num_residual_streams": 2, "num_residual_fracs": 2, "mc_hyper_conn_sinkhorn_iters": 3},
    "pope": {"use_pope": True},
    "linear_and_skips": {"linear_transformer_depth": 1, "skip_connection": True},
    "everything": {
        "linear_transformer_depth": 1,
        "use_pope": True,
        "use_value_residual_learning": True,
        "num_residual_streams": 2,
        "skip_connection": True,
        "use_torch_checkpoint": True,
    },
}
LAYERED = ("plain", "mel", "pope", "linear_and_skips")
"""Models whose attention and feedforward layers are sharded one by one."""
# gloo, the CPU's way of communicating, cannot scatter sums before.
SHARDS = Version(torch.__version__).release >= (2, 7)


def build(name: str, **overrides: Any) -> BandSplitRotator:
    torch.manual_seed(0)
    arguments = {key: value for key, value in {**TINY, **MODELS[name], **overrides}.items() if value is not None}
    return BandSplitRotator(**arguments)


def audio(batch: int = 4) -> tuple[Tensor, Tensor]:
    stems = torch.randn(batch, 3, 2, 400, generator=torch.Generator().manual_seed(1))
    return stems.sum(1), stems


def gradients(model: nn.Module) -> dict[str, Tensor]:
    def whole(tensor: Any) -> Tensor:
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    return {
        name: whole(parameter.grad).clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def step(model: nn.Module, rank: int, stem_ids: list[int] | None = None) -> Tensor:
    mixture, stems = (tensor.chunk(2)[rank] for tensor in audio())
    loss: Tensor = model(mixture, stems, stem_ids)
    loss.backward()
    return loss.detach()


# ---- what each of the two processes does


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    written: dict[str, Any] = {"ddp": {}, "unused": {}, "fsdp2": {}, "fsdp2_by_layer": {}}
    for name in MODELS:
        written["ddp"][name] = in_ddp(name, rank)
    for name, stem_ids in (("same", [[2, 0], [2, 0]]), ("different", [[0], [1, 0]])):
        model = DistributedDataParallel(build("plain"), find_unused_parameters=True)
        step(model, rank, stem_ids[rank])
        written["unused"][name] = gradients(model.module)
    written["reordered"] = in_ddp("plain", rank, [2, 0, 1])
    written["refusal"] = refusal_of_unused_parameters(rank)
    if SHARDS:
        for name in MODELS:
            written["fsdp2"][name] = in_fsdp2(name, rank)
        for name in LAYERED:
            written["fsdp2_by_layer"][name] = in_fsdp2_by_layer(name, rank)
    if rank == 0:
        torch.save(written, folder / "written.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_ddp(name: str, rank: int, stem_ids: list[int] | None = None) -> dict[str, Any]:
    """Take two steps, so that DDP finds out if a parameter was left without a gradient in the first."""
    model = DistributedDataParallel(build(name))
    losses = []
    for _ in range(2):
        model.zero_grad()
        loss = step(model, rank, stem_ids)
        dist.all_reduce(loss, op=dist.ReduceOp.SUM)
        losses.append(float(loss) / 2)
    return {"losses": losses, "gradients": gradients(model.module)}


def refusal_of_unused_parameters(rank: int) -> str:
    model = DistributedDataParallel(build("plain"))
    step(model, rank, [0])
    try:
        step(model, rank, [0])
    except RuntimeError as error:
        return str(error)
    return ""


def in_fsdp2(name: str, rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule

    model = build(name)
    shard(model, init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel")))
    transformers = [module for module in model.modules() if isinstance(module, Transformer)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = step(model, rank)
    dist.all_reduce(loss, op=dist.ReduceOp.SUM)
    first = gradients(model)
    optimizer.step()
    optimizer.zero_grad()
    second = step(model, rank)
    dist.all_reduce(second, op=dist.ReduceOp.SUM)
    local = sum(parameter.to_local().numel() for parameter in model.parameters())
    return {
        "losses": [float(loss) / 2, float(second) / 2],
        "gradients": first,
        "wrapped": [isinstance(transformer, FSDPModule) for transformer in transformers],
        "share": local / sum(parameter.numel() for parameter in model.parameters()),
    }


def in_fsdp2_by_layer(name: str, rank: int) -> dict[str, Any]:
    """Shard each attention and each feedforward by itself: weights are there while their own layer runs, no longer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model, mesh = build(name), init_device_mesh("cpu", (2,))
    for embedding in [module for module in model.modules() if isinstance(module, PositionEmbedding)]:
        fully_shard(embedding, mesh=mesh, reshard_after_forward=False)  # shared by many layers
    layers = [module for module in model.modules() if isinstance(module, (Attention, FeedForward))]
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    loss = step(model, rank)
    dist.all_reduce(loss, op=dist.ReduceOp.SUM)
    grads = gradients(model)
    with torch.no_grad():
        alone = model(audio()[0])
    return {
        "loss": float(loss) / 2,
        "gradients": grads,
        "audio": alone,
        "wrapped": [isinstance(layer, FSDPModule) for layer in layers],
    }


# ---- the tests


@pytest.fixture(scope="module")
def written(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)[-5000:]
    result: dict[str, Any] = torch.load(folder / "written.pt", weights_only=True)
    return result


def in_one_process(name: str, stem_ids: list[int] | None = None, **overrides: Any) -> tuple[float, dict[str, Tensor]]:
    model = build(name, **overrides)
    loss = model(*audio(), stem_ids)
    loss.backward()
    return float(loss.detach()), gradients(model)


def assert_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (ours[name].reshape(gradient.shape) - gradient).abs().max()
        assert difference <= 1e-5 * gradient.abs().max() + 1e-7 * largest, name


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_ddp_gives_the_gradients_of_one_process_with_the_double_batch(name: str, written: dict[str, Any]) -> None:
    loss, expected = in_one_process(name)
    ours = written["ddp"][name]
    assert ours["losses"] == pytest.approx([loss, loss], rel=1e-5)
    assert_same_gradients(ours["gradients"], expected)


@pytest.mark.slow
def test_ddp_needs_no_search_for_unused_parameters_while_every_stem_is_active(written: dict[str, Any]) -> None:
    _, expected = in_one_process("plain", [2, 0, 1])
    assert_same_gradients(written["reordered"]["gradients"], expected)


@pytest.mark.slow
def test_ddp_that_searches_for_unused_parameters_allows_leaving_stems_out(written: dict[str, Any]) -> None:
    _, expected = in_one_process("plain", [2, 0])
    trained = {name: gradient for name, gradient in written["unused"]["same"].items() if name in expected}
    assert_same_gradients(trained, expected)
    left_out = written["unused"]["same"].keys() - expected.keys()
    assert all(name.startswith("mask_estimators.1.") for name in left_out)


@pytest.mark.slow
def test_processes_may_leave_different_stems_out(written: dict[str, Any]) -> None:
    model = build("plain")
    mixture, stems = audio()
    halves = [model(mixture[:2], stems[:2], [0]), model(mixture[2:], stems[2:], [1, 0])]
    (sum(halves) / 2).backward()
    expected = gradients(model)
    ours = {name: gradient for name, gradient in written["unused"]["different"].items() if name in expected}
    assert_same_gradients(ours, expected)


@pytest.mark.slow
def test_ddp_without_the_search_says_so_when_stems_are_left_out(written: dict[str, Any]) -> None:
    assert "find_unused_parameters=True" in written["refusal"]


if SHARDS:

    @pytest.mark.slow
    @pytest.mark.parametrize("name", MODELS)
    def test_fsdp2_shards_each_transformer_and_gives_the_same_losses_and_gradients(
        name: str, written: dict[str, Any]
    ) -> None:
        ours = written["fsdp2"][name]
        axes = 3 if MODELS[name].get("linear_transformer_depth") else 2
        assert ours["wrapped"] == [True] * 2 * axes
        # Rows are not divided, so that a process may hold a little more than half.
        assert ours["share"] < 0.6

        model = build(name)
        loss = model(*audio())
        loss.backward()
        assert_same_gradients(ours["gradients"], gradients(model))
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        second = model(*audio())
        assert ours["losses"] == pytest.approx([float(loss.detach()), float(second.detach())], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "everything"])
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    loss, expected = in_one_process(name)
    again, ours = in_one_process(name, use_torch_checkpoint=True)
    assert again == pytest.approx(loss, rel=1e-6)
    assert_same_gradients(ours, expected)


def test_activation_checkpointing_repeats_the_same_dropout() -> None:
    dropout: dict[str, Any] = {"attn_dropout": 0.2, "ff_dropout": 0.2}
    results = []
    for use_torch_checkpoint in (False, True):
        model = build("plain", use_torch_checkpoint=use_torch_checkpoint, **dropout)
        torch.manual_seed(5)
        loss = model(*audio())
        loss.backward()
        results.append((float(loss.detach()), gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert_same_gradients(results[1][1], results[0][1])


def test_activation_checkpointing_stores_less() -> None:
    def stored(use_torch_checkpoint: bool) -> int:
        model = build("plain", use_torch_checkpoint=use_torch_checkpoint)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        seen: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(*audio())
        return sum(seen.values())

    assert stored(True) < 0.5 * stored(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))


@pytest.mark.slow
@pytest.mark.skipif(not SHARDS, reason="FSDP2 is not in this PyTorch")
@pytest.mark.parametrize("name", LAYERED)
def test_layers_sharded_one_by_one_compute_with_their_own_weights(written: dict[str, Any], name: str) -> None:
    result = written["fsdp2_by_layer"][name]
    assert all(result["wrapped"])
    loss, expected = in_one_process(name)
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(result["gradients"], expected)
    with torch.no_grad():
        torch.testing.assert_close(result["audio"], build(name)(audio()[0]), rtol=1e-4, atol=1e-6)
