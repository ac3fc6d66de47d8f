"""Optimizer states by parameter name, independent of the order of parameters.

PyTorch's own `state_dict` numbers parameters in order of registration. After modules are reordered, or parameters
grouped differently, every moment would belong to the wrong weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from hunterFormsBS.training.sharding import like

Saved = Mapping[str, Any]

OF_THE_SETTINGS = ("params", "lr", "initial_lr", "weight_decay", "betas", "eps")


def named_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return an optimizer's `state_dict` with parameter names instead of numbers."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return with_names(optimizer.state_dict(), ordered)


def with_names(positional: Saved, names: Iterable[str]) -> dict[str, Any]:
    """Replace the numbers of a `state_dict` by names.

    Parameters
    ----------
    positional : mapping
        The result of `Optimizer.state_dict`.
    names : iterable of str
        Of the parameters, group by group, in the optimizer's order.
    """
    numbers = [number for group in positional["param_groups"] for number in group["params"]]
    name_of = dict(zip(numbers, names, strict=True))
    return {
        "state": {name_of[number]: state for number, state in positional["state"].items()},
        "param_groups": [
            {**group, "params": [name_of[number] for number in group["params"]]} for group in positional["param_groups"]
        ],
    }


def load_named_state(
    optimizer: Optimizer, model: nn.Module, saved: Saved, *, but: Collection[str] = OF_THE_SETTINGS
) -> None:
    """Load the result of `named_state`, for any order and groups of parameters.

    Other values of a group, such as the step size that Prodigy has found, come from the saved group of its first
    parameter, except those in `but`: by default, what a resumed run may change.

    Raises
    ------
    ValueError
        If a moment's shape differs from its parameter's, or the state belongs to another kind of optimizer.
    """
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    for name, moments in cast("Mapping[str, Saved]", saved["state"]).items():
        for key, value in moments.items():
            if name in parameters and _is_moment(key, value, parameters[name]) and not _fits(value, parameters[name]):
                raise ValueError(
                    f"{key} of {name} has the shape {tuple(value.shape)}, and the parameter "
                    f"{tuple(parameters[name].shape)}: this is the state of another model's optimizer"
                )
    group_of: dict[str, Saved] = {name: group for group in saved["param_groups"] for name in group["params"]}
    now = optimizer.state_dict()
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    for group, numbered in zip(optimizer.param_groups, now["param_groups"], strict=True):
        ordered = [names[parameter] for parameter in group["params"]]
        found = next((group_of[name] for name in ordered if name in group_of), cast("Saved", {}))
        _refuse_another_kind(found, numbered, optimizer)
        groups.append({**numbered, **{key: value for key, value in found.items() if key not in but}})
        for number, name in zip(numbered["params"], ordered, strict=True):
            if name in saved["state"]:
                state[number] = {
                    key: like(value, parameters[name]) if _is_moment(key, value, parameters[name]) else value
                    for key, value in saved["state"][name].items()
                }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _refuse_another_kind(saved: Saved, now: Saved, optimizer: Optimizer) -> None:
    """Refuse the state of another kind of optimizer, by its options: newer versions of one kind only add options.

    Adam and AdamW have the same options; the one for the kind of decay distinguishes them.
    """
    missing, unknown = now.keys() - saved.keys(), saved.keys() - now.keys()
    kind = "decoupled_weight_decay"
    if saved and ((missing and unknown) or saved.get(kind, now.get(kind)) != now.get(kind)):
        raise ValueError(
            f"the state is that of another optimizer, of one with the options {', '.join(sorted(saved))}, and not of "
            f"{type(optimizer).__name__}: say training.optimizer as it was, or start another run from the weights, "
            "with --checkpoint and another --output"
        )


def names_in_older_order(parameter_names: Iterable[str], model: nn.Module) -> list[str]:
    """Return the names in the order of runs of version 0.1.0: matrices first, then vectors, each as registered.

    Parameters
    ----------
    parameter_names : iterable of str
        Keys of the model's state dict that was saved with the optimizer's, in its order.
    model : nn.Module
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    registered = [name for name in parameter_names if name in trained]
    return sorted(registered, key=lambda name: trained[name].ndim < 2)


def _is_moment(key: str, value: object, parameter: Tensor) -> bool:
    """Tell whether a value has one number per number of the parameter; for a scalar, moments and `step` both do."""
    return isinstance(value, Tensor) and (value.ndim > 0 or (parameter.numel() == 1 and key != "step"))


def _fits(moment: Tensor, parameter: Tensor) -> bool:
    """Tell whether shapes are equal; `engine.shard` makes a scalar a vector of one."""
    return moment.shape == parameter.shape or moment.numel() == parameter.numel() == 1
