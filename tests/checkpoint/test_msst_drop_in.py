"""What Music-Source-Separation-Training's training program does with a model, done with this one.

Its loop, its LoRA and its grouping of parameters are imitated here in a few lines each; peft is the real one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.bs_roformer import BSRoformer
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.mel_band_roformer import MelBandRoformer

STEMS = 3
EVERY_PARAMETER: dict[str, Any] = {
    "linear_transformer_depth": 1,
    "use_pope": True,
    "use_value_residual_learning": True,
    "num_residual_streams": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlapping": {"overlapping": True},
    "value_residual": {"use_value_residual_learning": True},
    "residual_streams": {"num_residual_streams": 2},
    "pope": {"use_pope": True},
    "everything": {**EVERY_PARAMETER, "use_torch_checkpoint": True},
}

Build = Callable[..., BandSplitRotator]


@pytest.fixture
def build(tiny_model: Build) -> Build:
    def seeded(**overrides: Any) -> BandSplitRotator:
        torch.manual_seed(3)
        return tiny_model(**{"stereo": True, "num_stems": STEMS, **overrides})

    return seeded


class Items(Dataset[Any]):
    """What its data sets return: the stems `(n, s, t)`, the mixture `(s, t)`, and in one of them the active stems."""

    def __init__(self, stems: int = STEMS, active_stem_ids: list[int] | None = None) -> None:
        self.stems = stems
        self.active_stem_ids = active_stem_ids

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        stems = torch.randn(self.stems, 2, 320, generator=torch.Generator().manual_seed(index))
        item = (stems, stems.sum(0))
        return item if self.active_stem_ids is None else (*item, self.active_stem_ids)


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    *,
    gradient_accumulation_steps: int = 1,
    use_amp: bool = False,
    grad_clip: float = 0,
) -> list[float]:
    """Do what its loop does for models that compute their own loss."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = []
    model.train()
    for i, (batch, mixes, *active) in enumerate(loader):
        with torch.autocast("cpu", torch.bfloat16, enabled=use_amp):
            loss = model(mixes, batch, active_stem_ids=active[0] if active else None)
            loss = loss.mean()
        loss /= gradient_accumulation_steps
        scaler.scale(loss).backward()
        if (i + 1) % gradient_accumulation_steps == 0 or i == len(loader) - 1:
            scaler.unscale_(optimizer)
            if grad_clip:
                nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item() * gradient_accumulation_steps)
    return losses


def batches(stems: int = STEMS, batch_size: int = 2, active_stem_ids: list[int] | None = None) -> DataLoader[Any]:
    return DataLoader(Items(stems, active_stem_ids), batch_size=batch_size)


def epochs(
    model: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer, n: int, **how: Any
) -> list[float]:
    means = []
    for _ in range(n):
        losses = train_one_epoch(model, loader, optimizer, **how)
        means.append(sum(losses) / len(losses))
    return means


@pytest.mark.parametrize("name", VARIANTS)
def test_its_loop_trains_a_model_of_many_stems(name: str, build: Build) -> None:
    model = build(**VARIANTS[name])
    losses = epochs(model, batches(), torch.optim.Adam(model.parameters(), lr=2e-3), 6)
    assert all(after < before for before, after in pairwise(losses))


def test_its_loop_trains_with_mixed_precision_accumulation_and_clipping(build: Build) -> None:
    model = build()
    how: dict[str, Any] = {"use_amp": True, "gradient_accumulation_steps": 2, "grad_clip": 0.5}
    losses = epochs(model, batches(), torch.optim.AdamW(model.parameters(), lr=2e-3), 6, **how)
    assert all(after < before for before, after in pairwise(losses))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_one_stem_trains_with_targets_that_have_a_stem_axis_and_gives_a_stem_axis(build: Build) -> None:
    model = build(num_stems=1)
    ((stems, mixture),) = batches(1, batch_size=4)
    assert stems.shape == (4, 1, 2, 320)
    torch.testing.assert_close(model(mixture, stems), model(mixture, stems[:, 0]))
    assert model(mixture).shape == (4, 1, 2, 320)
    mono = build(num_stems=1, stereo=False)
    mono_mixture, mono_stem = mixture[:, :1], stems[:, 0, :1]
    torch.testing.assert_close(mono(mono_mixture[:, 0], mono_stem[:, 0]), mono(mono_mixture, mono_stem[:, None]))
    losses = epochs(model, batches(1), torch.optim.Adam(model.parameters(), lr=2e-3), 3)
    assert losses[-1] < losses[0]


def test_loss_is_a_scalar_that_mean_leaves_alone_and_can_be_divided_in_place(build: Build) -> None:
    ((stems, mixture),) = batches(batch_size=4)
    loss = build()(mixture, stems)
    assert loss.shape == ()
    assert loss.mean() == loss
    whole = float(loss.detach())
    loss /= 2
    assert float(loss.detach()) == pytest.approx(whole / 2)


def test_active_stems_as_its_loader_collates_them_train_their_heads_only(build: Build) -> None:
    model = build()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    # A batch of one makes a list of one-element tensors of the list of numbers.
    loader = batches(batch_size=1, active_stem_ids=[2, 0])
    assert [ids.shape for ids in next(iter(loader))[2]] == [(1,), (1,)]
    train_one_epoch(model, loader, torch.optim.Adam(model.parameters(), lr=1e-3))
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    heads = {name.split(".")[1] for name in changed if name.startswith("mask_estimators.")}
    assert heads == {"0", "2"}
    assert any(name.startswith("layers.") for name in changed)

    stems, mixture, ids = next(iter(loader))
    torch.testing.assert_close(
        model(mixture, stems, active_stem_ids=ids), model(mixture, stems, active_stem_ids=[2, 0])
    )
    torch.testing.assert_close(model(mixture, active_stem_ids=ids), model(mixture)[:, [2, 0]])


# ---- several devices


def test_data_parallel_without_a_gpu_is_the_model(build: Build, tmp_path: Path) -> None:
    model = build()
    parallel = nn.DataParallel(model)
    ((stems, mixture),) = batches(batch_size=4)
    assert torch.equal(parallel(mixture, stems, active_stem_ids=[1]).mean(), model(mixture, stems, active_stem_ids=[1]))
    losses = epochs(parallel, batches(), torch.optim.Adam(parallel.parameters(), lr=2e-3), 3)
    assert losses[-1] < losses[0]
    # It saves `model.module.state_dict()`; people also save that of the wrapper.
    torch.save({"model_state_dict": parallel.state_dict()}, tmp_path / "model.ckpt")
    loaded = from_checkpoint(tmp_path / "model.ckpt", model.configuration, upstream="hunterFormsBS")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", VARIANTS)
def test_data_parallel_over_several_devices_gives_the_gradients_of_one(name: str, build: Build) -> None:
    model = build(**VARIANTS[name])
    ((stems, mixture),) = batches(batch_size=4)
    loss = model(mixture, stems)
    loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    # What DataParallel does on GPUs, with copies on the CPU in place of broadcasts: replicas have no parameters.
    replicate = importlib.import_module("torch.nn.parallel.replicate")
    copies: Callable[..., Any] = lambda tensors, devices, detach=False: [  # noqa: E731
        [tensor.detach().clone() if detach else tensor.clone() for tensor in tensors] for _ in devices
    ]
    with (
        mock.patch.object(replicate, "_broadcast_coalesced_reshape", copies),
        mock.patch.object(replicate, "_get_device_index", lambda device, *_: device),
    ):
        replicas = replicate.replicate(model, ["cpu", "cpu"])
    assert not list(replicas[0].parameters())
    halves = [replica(mixture[i : i + 2], stems[i : i + 2]) for i, replica in zip((0, 2), replicas, strict=True)]
    gathered = torch.stack(halves).mean()
    gathered.backward()
    assert float(gathered.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in expected:
            scale = expected[parameter_name].abs().max()
            torch.testing.assert_close(
                parameter.grad, expected[parameter_name], rtol=1e-5, atol=1e-5 * float(scale) + 1e-8
            )


def test_distributed_data_parallel_trains_in_its_loop(build: Build, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = build()
        parallel = nn.parallel.DistributedDataParallel(model)
        losses = epochs(parallel, batches(), torch.optim.Adam(parallel.parameters(), lr=2e-3), 3)
        alone = build()
        expected = epochs(alone, batches(), torch.optim.Adam(alone.parameters(), lr=2e-3), 3)
        assert losses == pytest.approx(expected, rel=1e-6)
        assert parallel.module.state_dict().keys() == alone.state_dict().keys()
    finally:
        torch.distributed.destroy_process_group()


# ---- LoRA


class LoRA(nn.Linear):
    """A low-rank adapter that is a linear layer, as that of loralib is."""

    def __init__(self, linear: nn.Linear, r: int = 2) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        self.lora_A = nn.Parameter(torch.randn(r, linear.in_features) * 0.1)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, r))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merged(self) -> nn.Linear:
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.load_state_dict({name: p for name, p in self.state_dict().items() if not name.startswith("lora_")})
        with torch.no_grad():
            linear.weight += self.lora_B @ self.lora_A
        return linear


def linears(model: nn.Module, kind: type[nn.Linear] = nn.Linear) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for name, module in list(model.named_modules()):
        if type(module) is kind:
            parent, _, own = name.rpartition(".")
            yield model.get_submodule(parent), own, module


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_low_rank_adapters_in_place_of_every_linear_layer_train_and_merge(name: str, build: Build) -> None:
    model = build(**VARIANTS[name])
    ((stems, mixture),) = batches(batch_size=4)
    before = model(mixture)
    replaced = 0
    for parent, own, linear in linears(model):
        setattr(parent, own, LoRA(linear))
        replaced += 1
    assert replaced > 40
    torch.testing.assert_close(model(mixture), before)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in parameter_name)

    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    model(mixture, stems).backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora_B" in n)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = epochs(model, batches(), torch.optim.Adam(trained, lr=5e-3), 4)
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)

    adapted = model(mixture)
    for parent, own, adapter in linears(model, LoRA):
        setattr(parent, own, adapter.merged())
    torch.testing.assert_close(model(mixture), adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_peft_trains_and_merges_and_the_result_is_an_ordinary_checkpoint(
    name: str, build: Build, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    model = build(**VARIANTS[name])
    ((_stems, mixture),) = batches(batch_size=4)
    before = model(mixture)
    keys = model.state_dict().keys()
    # Ends of names are enough; with a linear transformer, which has another module of the same name, whole names are.
    ends = ["to_qkv", "to_gates", "to_out.0", "net.1", "net.4"]
    whole = [own for own, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = ends if name == "plain" else whole
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=targets))
    torch.testing.assert_close(adapted(mixture), before)

    frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    losses = epochs(adapted, batches(), torch.optim.Adam(trained, lr=1e-2), 4)
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)
    assert all(torch.equal(p, frozen[n]) for n, p in adapted.named_parameters() if n in frozen)

    after = adapted(mixture)
    assert not torch.allclose(after, before, atol=1e-3)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, BandSplitRotator)
    assert merged.state_dict().keys() == keys
    torch.testing.assert_close(merged(mixture), after, rtol=1e-4, atol=1e-5)
    save_checkpoint(tmp_path / "merged.ckpt", merged)
    torch.testing.assert_close(from_checkpoint(tmp_path / "merged.ckpt")(mixture), after, rtol=1e-4, atol=1e-5)


# ---- optimizers


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal by Newton-Schulz iterations, and plain momentum for the rest."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.01, "momentum": 0.9, "use_muon": False})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
                velocity.mul_(group["momentum"]).add_(parameter.grad)
                update = orthogonal(velocity.view(len(velocity), -1)) if group["use_muon"] else velocity
                parameter.add_(update.view_as(parameter), alpha=-group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_grouped_by_rank_suit_an_optimizer_for_matrices(name: str, build: Build) -> None:
    model = build(**VARIANTS[name])
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    before = [parameter.detach().clone() for parameter in matrices]
    optimizer = Muon(
        [{"params": matrices, "use_muon": True, "lr": 0.02}, {"params": others, "use_muon": False, "lr": 1e-3}]
    )
    losses = epochs(model, batches(), optimizer, 6)
    assert losses[-1] < losses[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(not torch.equal(parameter, old) for parameter, old in zip(matrices, before, strict=True))
    weights = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    assert weights <= {id(parameter) for parameter in matrices}


if hasattr(torch.optim, "Muon"):  # PyTorch 2.9 and newer

    def test_the_muon_of_torch_takes_every_weight_of_a_plain_model(build: Build) -> None:
        model = build()
        matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
        others = [parameter for parameter in model.parameters() if parameter.ndim < 2 and parameter.requires_grad]
        muon, adamw = torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=1e-3)
        losses = []
        for _ in range(4):
            losses.append(sum(train_one_epoch(model, batches(), muon)))
            train_one_epoch(model, batches(), adamw)
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", [BSRoformer, MelBandRoformer])
def test_its_two_model_names_take_its_constructor_arguments_and_its_loop(kind: type[BandSplitRotator]) -> None:
    layout: dict[str, Any] = {"freqs_per_bands": (2, 3, 4, 5, 7, 12)}
    if kind is MelBandRoformer:
        layout = {"num_bands": 4, "sample_rate": 2000}
    model = kind(
        dim=12,
        depth=1,
        stereo=True,
        num_stems=STEMS,
        time_transformer_depth=1,
        freq_transformer_depth=1,
        linear_transformer_depth=0,
        dim_head=4,
        heads=2,
        attn_dropout=0,
        ff_dropout=0,
        flash_attn=True,
        dim_freqs_in=33,
        stft_n_fft=64,
        stft_hop_length=16,
        stft_win_length=64,
        stft_normalized=False,
        mask_estimator_depth=1,
        multi_stft_resolution_loss_weight=1.0,
        multi_stft_resolutions_window_sizes=(64, 32),
        multi_stft_hop_size=20,
        multi_stft_normalized=False,
        mlp_expansion_factor=2,
        use_torch_checkpoint=False,
        skip_connection=False,
        **layout,
    )
    losses = epochs(model, batches(), torch.optim.Adam(model.parameters(), lr=2e-3), 3)
    assert losses[-1] < losses[0]
