"""Runs that change programs: what `last_*.ckpt` of Music-Source-Separation-Training holds, read and written."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.training.msst import read_last, write_last
from hunterFormsBS.training.optimizers import TORCH, make_optimizer
from hunterFormsBS.training.optimizerState import load_named_state, named_state
from hunterFormsBS.training.stempegSong import write_songs

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """Step along a gradient that depends on the number and the names of the parameters alone."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.manual_seed(sum(name.encode()) + number)
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def saved_there(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, Any]:
    """Return what Music-Source-Separation-Training saves at the end of an epoch."""
    return {
        "epoch": epoch,
        "optimizer_name": type(optimizer).__name__,
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": {"factor": 0.95, "best": np.float64(3.0), "_last_lr": [0.01]},
        "best_metric": np.float64(3.0),
        "all_metrics": {"epoch_0": {"sdr": {"vocals": [np.float64(3.0)]}}},
        "all_losses": {"epoch_0": [0.1, 0.2]},
        "model_state_dict": model.state_dict(),
    }


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("overrides", [{}, {"use_pope": True, "num_stems": 2}, {"overlapping": True, "stereo": True}])
def test_a_run_of_msst_goes_on_here_with_the_moments_of_each_parameter(
    name: str, overrides: Mapping[str, Any], tiny_model: Callable[..., BandSplitRotator], tmp_path: Path
) -> None:
    there = tiny_model(**overrides)
    optimizer = TORCH[name](there.parameters(), lr=0.01, weight_decay=0.0)  # one group of all parameters
    for number in range(3):
        step(there, optimizer, number)
    torch.save(saved_there(there, optimizer, epoch=4), tmp_path / "last_bs_roformer.ckpt")

    here = tiny_model(**overrides)
    here.load_state_dict(there.state_dict())
    last = read_last(tmp_path / "last_bs_roformer.ckpt", here)
    assert (last.name, last.epochs, last.lr) == (name, 5, 0.01)
    ours = make_optimizer(here, name, lr=0.01)
    load_named_state(ours, here, last.optimizer)
    for number in range(3, 6):
        step(there, optimizer, number)
        step(here, ours, number)
    torch.testing.assert_close(weights(here), weights(there), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", TORCH)
def test_a_run_of_here_goes_on_there(name: str, tiny_model: Callable[..., BandSplitRotator], tmp_path: Path) -> None:
    here = tiny_model(stereo=True)
    ours = make_optimizer(here, name, lr=0.01)
    for number in range(3):
        step(here, ours, number)
    path = tmp_path / "last_bs_roformer.ckpt"
    sections = {"training": {"instruments": ["vocals"]}}
    write_last(path, here, named_state(ours, here), name=name, epochs=3, best=1.5, configuration=sections)

    saved = torch.load(path, weights_only=True)
    assert (saved["epoch"], saved["best_metric"], saved["optimizer_name"]) == (2, 1.5, TORCH[name].__name__)
    there = tiny_model(stereo=True)
    there.load_state_dict(saved["model_state_dict"])
    optimizer = TORCH[name](there.parameters(), lr=0.01)
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    for number in range(3, 6):
        step(there, optimizer, number)
        step(here, ours, number)
    torch.testing.assert_close(weights(there), weights(here), rtol=1e-6, atol=1e-7)
    assert yaml.unsafe_load(path.with_suffix(".yaml").read_text())["training"]["instruments"] == ["vocals"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer_name": "Prodigy"}, "holds the state of Prodigy, and only those of Adam, AdamW, RAdam, RMSprop"),
        ({"optimizer_state_dict": None}, "holds no optimizer's state: leave out --load-optimizer"),
        ({"optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1.0, "params": [0, 1]}]}}, "of 2 parameters"),
    ],
)
def test_states_that_cannot_be_taken_over_are_refused(
    change: Mapping[str, Any], message: str, tiny_model: Callable[..., BandSplitRotator], tmp_path: Path
) -> None:
    model = tiny_model()
    saved = saved_there(model, torch.optim.Adam(model.parameters()), 0) | change
    torch.save({key: value for key, value in saved.items() if value is not None}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=message):
        read_last(tmp_path / "last.ckpt", model)


def test_an_optimizer_that_has_another_state_there_is_not_written(
    tiny_model: Callable[..., BandSplitRotator], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"training\.optimizer='prodigy' has another state there"):
        write_last(
            tmp_path / "x.ckpt", tiny_model(), {}, name="prodigy", epochs=1, best=0.0, configuration={"training": {}}
        )
    assert list(tmp_path.iterdir()) == []


CONFIGURATION = """
audio: {chunk_size: 16384, sample_rate: 44100}
model: {dim: 16, depth: 1, heads: 2, dim_head: 8, stereo: true, num_stems: 2, mlp_expansion_factor: 1,
        mask_estimator_depth: 2, stft_hop_length: 512}
training: {instruments: [vocals, other], batch_size: 1, num_epochs: 2, num_steps: 3, lr: 1.0e-3, patience: 2,
           reduce_factor: 0.5, optimizer: adam, num_workers: 0, ema_momentum: 0.5}
inference: {batch_size: 1, num_overlap: 2}
"""


@pytest.mark.slow
def test_a_run_goes_there_and_comes_back(
    run_commands: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    write_songs(tmp_path / "songs")
    (tmp_path / "msst.yaml").write_text(CONFIGURATION)
    (tmp_path / "longer.yaml").write_text(CONFIGURATION.replace("num_epochs: 2", "num_epochs: 4"))
    train = "hunterforms train --accelerator cpu --songs songs"
    (tmp_path / "there.py").write_text(
        "import torch\n"
        "saved = torch.load('last_bs_roformer.ckpt', weights_only=True)\n"
        "saved['epoch'] += 1\n"
        "saved['optimizer_state_dict']['param_groups'][0]['lr'] = 5e-4\n"
        "torch.save(saved, 'last_bs_roformer.ckpt')\n"
    )
    done = run_commands(
        [
            "set -e",
            f"{train} --configuration msst.yaml --output first",
            "hunterforms convert first --layout msst --output last_bs_roformer.ckpt",
            "python there.py",
            f"{train} --configuration longer.yaml --output second --checkpoint last_bs_roformer.ckpt --load-optimizer",
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the state after 6 updates, which are 2 whole epochs" in done.stderr
    assert re.search(r"; continuing after update 9 of 12$", done.stdout, re.MULTILINE)
    assert re.search(r"^SDR before: vocals .* dB, other .* dB$", done.stdout, re.MULTILINE)
    assert "warning" not in done.stderr

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "second" / "tensorboard"))
    events.Reload()
    # What the schedule there had come down to.
    assert [(event.step, event.value) for event in events.Scalars("learning_rate")] == [
        (10, pytest.approx(5e-4)),
        (12, pytest.approx(5e-4)),
    ]
