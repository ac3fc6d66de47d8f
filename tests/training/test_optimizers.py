"""Optimizers by name: what is decayed, which parameters Muon takes, and states that come back."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from hunterFormsBS.training.optimizers import make_optimizer
from hunterFormsBS.training.optimizerState import load_named_state, named_state

ARGUMENTS: dict[str, dict[str, Any]] = {"muon": {"muon_group": {"momentum": 0.9}, "adam_group": {"betas": (0.8, 0.9)}}}


def groups_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return {name: group_of[id(p)] for name, p in model.named_parameters() if id(p) in group_of}


def test_matrices_are_decayed_and_gains_with_several_axes_are_not(tiny_model: Callable[..., nn.Module]) -> None:
    model = tiny_model(use_pope=True, num_residual_streams=2, linear_transformer_depth=1)
    groups = groups_by_name(model, make_optimizer(model, "adamw", lr=1.0, weight_decay=0.1))
    assert groups.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = {name.rpartition(".")[2] for name, group in groups.items() if group["weight_decay"] == 0.1}
    # The projections of residual streams are matrices of another name.
    assert decayed == {"weight", "dynamic_alpha_fn"}
    kept = {name.rpartition(".")[2] for name, group in groups.items() if group["weight_decay"] == 0}
    assert kept >= {"gamma", "bias", "static_alpha", "temperature"}
    assert all(groups[name]["weight_decay"] == 0 for name in groups if name.endswith("pope_embed.bias"))


def test_muon_takes_matrices_and_adam_the_rest(tiny_model: Callable[..., nn.Module]) -> None:
    pytest.importorskip("pytorch_optimizer")
    model = tiny_model(use_pope=True)
    optimizer = make_optimizer(model, "muon", lr=0.02, arguments=ARGUMENTS["muon"])
    for name, group in groups_by_name(model, optimizer).items():
        assert group["use_muon"] == name.endswith(".weight"), name
        assert group["momentum" if group["use_muon"] else "betas"] == (0.9 if group["use_muon"] else (0.8, 0.9))


@pytest.mark.parametrize("name", ["adam", "adamw", "radam", "rmsprop", "prodigy", "muon"])
def test_an_optimizer_lowers_the_loss_and_goes_on_the_same_after_its_state_was_saved(
    name: str, tiny_model: Callable[..., nn.Module]
) -> None:
    if name in ("prodigy", "muon"):
        pytest.importorskip("pytorch_optimizer")
    lr = 1.0 if name == "prodigy" else 0.01
    models = [tiny_model(), tiny_model()]
    audio = torch.randn(2, 160)

    def prepared(model: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(model, name, lr=lr, weight_decay=0.01, arguments=ARGUMENTS.get(name))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        torch.manual_seed(0)
        loss = model(audio, audio[:, None, None] / 2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    first = prepared(models[0])
    losses = [step(models[0], first) for _ in range(20)]
    assert losses[-1] < losses[0]
    models[1].load_state_dict(models[0].state_dict())
    second = prepared(models[1])
    load_named_state(second, models[1], deepcopy(named_state(first, models[0])))
    for model, optimizer in zip(models, (first, second), strict=True):
        step(model, optimizer)
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=0, atol=0)


def test_arguments_of_prodigy_may_have_the_names_of_prodigyopt() -> None:
    pytest.importorskip("pytorch_optimizer")
    arguments = {"d_coef": 2.0, "decouple": False, "use_bias_correction": True, "safeguard_warmup": True}
    (group,) = make_optimizer(nn.Linear(2, 2, bias=False), "prodigy", lr=1.0, arguments=arguments).param_groups
    assert group["d_coef"] == 2
    assert [group[name] for name in ("weight_decouple", "bias_correction", "safeguard_warmup")] == [False, True, True]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sgd", {}, "'sgd' is unknown: choose one of adam, adamw"),
        ("adamw", {"momentum": 1}, "optimizer has 'momentum', which adamw does not: choose from lr, betas"),
        ("prodigy", {"slice_p": 11}, "optimizer has 'slice_p', which prodigy does not: choose from lr, betas"),
        ("muon", {"momentum": 1}, "Muon takes its arguments in muon_group and adam_group"),
    ],
)
def test_optimizers_and_arguments_that_do_not_exist_are_refused(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(nn.Linear(2, 2), name, lr=1.0, arguments=arguments)
