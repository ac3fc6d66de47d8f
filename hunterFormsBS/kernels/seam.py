"""What is so by default: layers that do what their class says, eager calls on a CPU, devices for constants."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_internals

P = ParamSpec("P")
R = TypeVar("R")

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether calling `module` does what `kind.forward` does and nothing else.

    False for anything that someone put in its place or hung on it: subclasses, LoRA and quantised layers,
    parametrizations, hooks, a patched `forward`, parameters that are tensor subclasses.
    """
    state = module.__dict__
    return (
        type(module) is kind
        and "forward" not in state
        and not any(state[name] or getattr(module_internals, f"_global{name}") for name in HOOKS)
        and all(type(p) in (nn.Parameter, Tensor) for p in state["_parameters"].values() if p is not None)
    )


def are_plain(module: nn.Module, kinds: Collection[type[nn.Module]]) -> bool:
    """Tell whether `module` and everything inside it is plain, and of one of `kinds`."""
    return all(type(part) in kinds and is_plain(part, type(part)) for part in module.modules())


def constant_when_compiled(method: Callable[P, R]) -> Callable[P, R]:
    """Make the compiler call `method` instead of tracing it: walking over hundreds of layers would take it long."""
    # As torch.compiler.assume_constant_result does, which would import the whole compiler, two seconds, for everybody.
    vars(method)["_dynamo_marked_constant"] = True
    return method


def is_eager_on_cpu(x: Tensor) -> bool:
    """Tell whether small pieces are best: on a CPU calls are cheap and cache is dear; elsewhere it is the reverse."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def device_of_constants() -> torch.device:
    """Return the default device; the CPU in place of the meta device, from which no value ever comes back."""
    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device
