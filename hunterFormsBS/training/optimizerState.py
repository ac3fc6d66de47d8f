"""An optimizer's state by the names of parameters, which the order of a model's parameters does not touch.

PyTorch's own `state_dict` numbers the parameters in the order of their registration. Whoever sorts the modules of a
model anew, or groups its parameters in another way, would give every moment to the wrong weight.
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
    """Return the state of an optimizer: `state_dict`, with names of parameters for their numbers."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return with_names(optimizer.state_dict(), ordered)


def with_names(positional: Saved, names: Iterable[str]) -> dict[str, Any]:
    """Put names for the numbers of a `state_dict`.

    Parameters
    ----------
    positional : mapping
        What `Optimizer.state_dict` returned.
    names : iterable of str
        Of the parameters, group after group, in the order in which the optimizer got them.
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
    """Take over what `named_state` returned, in whatever order and groups the parameters are now.

    What a group keeps besides its parameters, such as the step size that Prodigy has found, comes from the saved group
    of its first parameter, except for what is listed in `but`: by default that which a resumed run may change.

    Raises
    ------
    ValueError
        If a moment has another shape than its parameter.
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
        groups.append({**numbered, **{key: value for key, value in found.items() if key not in but}})
        for number, name in zip(numbered["params"], ordered, strict=True):
            if name in saved["state"]:
                state[number] = {
                    key: like(value, parameters[name]) if _is_moment(key, value, parameters[name]) else value
                    for key, value in saved["state"][name].items()
                }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def names_in_older_order(parameter_names: Iterable[str], model: nn.Module) -> list[str]:
    """Return the names as runs of version 0.1.0 numbered them: matrices first, then vectors, each as registered.

    Parameters
    ----------
    parameter_names : iterable of str
        Keys of the model's state dict that lies beside the optimizer's, in its order.
    model : nn.Module
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    registered = [name for name in parameter_names if name in trained]
    return sorted(registered, key=lambda name: trained[name].ndim < 2)


def _is_moment(key: str, value: object, parameter: Tensor) -> bool:
    """Tell whether a value belongs to the numbers of a parameter; that of a scalar is one, and so is its `step`."""
    return isinstance(value, Tensor) and (value.ndim > 0 or (parameter.numel() == 1 and key != "step"))


def _fits(moment: Tensor, parameter: Tensor) -> bool:
    """Tell whether the shapes are the same, where `engine.shard` makes a scalar a vector of one."""
    return moment.shape == parameter.shape or moment.numel() == parameter.numel() == 1
