"""What training recomputes in the backward pass instead of storing it.

Two means with one purpose: `linear_of` stores the input of a cheap function instead of its output, which
costs nothing worth measuring; `checkpointed` stores nothing inside a whole block and runs it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as module_internals
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

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


def checkpointed(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` such that the backward pass has only its arguments stored, and runs it again."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        return cast(R, checkpoint(partial(function, **kwargs), *args, use_reentrant=False))

    return run


def can_recompute(*modules: tuple[nn.Module, type[nn.Module]]) -> bool:
    """Tell whether `linear_of` may stand for calls of these modules, and is of use.

    Without gradients nothing is stored anyway, and a compiler decides by itself what to store.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return all(is_plain(module, kind) for module, kind in modules)


def linear_of(
    cheap: Callable[..., Tensor], inputs: tuple[Tensor, ...], linears: Sequence[nn.Linear]
) -> tuple[Tensor, ...]:
    """Apply each of `linears` to `cheap(*inputs)`, storing `inputs`, not the result of `cheap`, for the backward pass.

    The layers are not called, only their weights are used: ask `can_recompute` first.

    Parameters
    ----------
    cheap : Callable
        An elementwise function or a normalisation of `inputs`, without randomness.
    inputs : tuple of Tensor
        Its arguments, parameters included.
    linears : sequence of nn.Linear
        Layers that share the input.

    Returns
    -------
    tuple of Tensor
        One output for each layer.
    """
    weights = [parameter for linear in linears for parameter in (linear.weight, linear.bias)]
    return cast("tuple[Tensor, ...]", _LinearOf.apply(cheap, len(inputs), *inputs, *weights))  # type: ignore[no-untyped-call]


class _LinearOf(torch.autograd.Function):
    """Differentiable `linear_of`: matrix products are not repeated in the backward pass, only `cheap` is."""

    @staticmethod
    def forward(ctx: Any, cheap: Callable[..., Tensor], num_inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.cheap = cheap
        ctx.num_inputs = num_inputs
        ctx.save_for_backward(*tensors)
        hidden = cheap(*tensors[:num_inputs])
        weights = tensors[num_inputs:]
        return tuple(F.linear(hidden, w, b) for w, b in zip(weights[::2], weights[1::2], strict=True))

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors  # once: activation checkpointing unpacks them only once
        inputs, weights = saved[: ctx.num_inputs], saved[ctx.num_inputs :]
        needs = ctx.needs_input_grad[2:]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=False)]
        with torch.enable_grad():
            hidden = ctx.cheap(*leaves)
        rows = hidden.detach().flatten(0, -2)

        grad_hidden: Tensor | None = None
        grad_weights: list[Tensor | None] = []
        for index, grad in enumerate(grad_outputs):
            weight, bias = weights[2 * index : 2 * index + 2]
            need_weight, need_bias = needs[ctx.num_inputs + 2 * index : ctx.num_inputs + 2 * index + 2]
            grad_rows = grad.flatten(0, -2)
            # Under autocast the output, and so its gradient, is narrower than the stored tensors.
            narrow = grad.dtype
            grad_weights += [
                (grad_rows.T @ rows.to(narrow)).to(weight.dtype) if need_weight else None,
                grad_rows.sum(0).to(bias.dtype) if need_bias else None,
            ]
            part = grad @ weight.to(narrow)
            grad_hidden = part if grad_hidden is None else grad_hidden + part

        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grads = iter(torch.autograd.grad(hidden, wanted, cast(Tensor, grad_hidden).to(hidden.dtype)) if wanted else ())
        grad_inputs = [next(grads) if leaf.requires_grad else None for leaf in leaves]
        return (None, None, *grad_inputs, *grad_weights)
