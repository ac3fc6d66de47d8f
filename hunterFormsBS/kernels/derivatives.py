"""Higher derivatives of kernels: their backward passes are differentiable if those of the formulas are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

Autocast = Callable[[], AbstractContextManager[Any]]
"""A context manager that restores the autocast state of a forward pass."""


def current_autocast(tensor: Tensor) -> Autocast:
    """Return the current autocast state for the device of `tensor`; a backward pass does not restore it by itself."""
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    return partial(torch.autocast, kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))


def gradients_of(
    formula: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Any],
    needs: Sequence[bool],
    grad_outputs: Sequence[Tensor],
    autocast: Autocast,
) -> list[Tensor | None]:
    """Return gradients that can be differentiated again, for the backward pass of an `autograd.Function`.

    A kernel's own backward pass computes only gradients. If PyTorch needs a graph of it (`create_graph=True`, which
    turns grad mode on), the formula is computed again and differentiated.

    Parameters
    ----------
    formula : Callable
        Differentiable function of `inputs` with the kernel's result.
    inputs : sequence
        Inputs of the kernel, as in `ctx.saved_tensors`.
    needs : sequence of bool
        Which inputs need a gradient, as in `ctx.needs_input_grad`.
    grad_outputs : sequence of Tensor
        Gradients of the outputs.
    autocast : Callable
        The result of `current_autocast` in the forward pass.

    Returns
    -------
    list of Tensor or None
        A gradient for each input that needs one.
    """
    # Aliases: one input may be computed from another, and gradients must not flow along that path here.
    aliases = [tensor.view_as(tensor) if need else tensor for tensor, need in zip(inputs, needs, strict=True)]
    wanted = [alias for alias, need in zip(aliases, needs, strict=True) if need]
    with autocast():
        outputs = formula(*aliases)
    grads = iter(torch.autograd.grad(outputs, wanted, grad_outputs, create_graph=True, allow_unused=True))
    return [next(grads) if need else None for need in needs]
