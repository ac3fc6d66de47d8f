"""Higher derivatives of kernels: the backward pass of a kernel can be differentiated when that of its formula can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the state of autocast in a forward pass that of the code within."""


def current_autocast(tensor: Tensor) -> Autocast:
    """Return the present state of autocast on the device of `tensor`, which no backward pass has by itself."""
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

    A kernel's own backward pass is for gradients alone. When PyTorch asks for a graph of it (`create_graph=True`; grad
    mode is then on in it), the formula is computed once more and differentiated.

    Parameters
    ----------
    formula : Callable
        Differentiable function of `inputs` that returns what the kernel did.
    inputs : sequence
        What was given to the kernel, as `ctx.saved_tensors` has it.
    needs : sequence of bool
        Which inputs need a gradient, as `ctx.needs_input_grad` has it.
    grad_outputs : sequence of Tensor
        Gradients of the outputs.
    autocast : Callable
        What `current_autocast` returned in the forward pass.

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
