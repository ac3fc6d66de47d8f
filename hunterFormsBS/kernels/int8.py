"""Linear maps in integers of 8 bits, where a caller asks for them: on a CPU, without gradients.

Activations are quantised as they come, with one step and one zero point for each block of tokens, and weights once in a
call of a transformer, with a step for each output. Sums are of 32 bits, and results float32 [1]_:

    x ≈ s (u − z), w_o ≈ s_o v_o, so that (x wᵀ)_o ≈ s s_o Σ (u − z) v_o

References
----------
.. [1] Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
   CVPR 2018, arXiv 1712.05877.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.kernels.internals import int8_products

LEAST_FEATURES = 32
"""Maps from or to fewer features stay in float32: they are cheap, and the gates of attention are among them."""

STEPS = 254
"""From the least to the greatest activation: one fewer than 8 bits hold, so that rounding never leaves them."""

_LEAST_STEP = 1e-30


@dataclass
class Use:
    """What has been computed in int8 since somebody asked for it."""

    weights: int = 0
    """How many weights were quantised."""


_asked: ContextVar[Use | None] = ContextVar("_asked", default=None)


@contextmanager
def in_int8() -> Generator[Use]:
    """Compute the linear maps of transformers in int8, in the current thread, wherever their kernels run on a CPU.

    Yields
    ------
    Use
        How much was computed so; with nothing, all of it was float32.
    """
    use = Use()
    token = _asked.set(use)
    try:
        yield use
    finally:
        _asked.reset(token)


class WeightInt8(NamedTuple):
    """The weight of a linear map, `(o, i)`, in int8."""

    values: Tensor
    """In oneDNN's own order of memory."""
    steps: Tensor
    """`(o)`."""
    zero_points: Tensor
    """`(o)`, all 0."""


def quantised(weight: Tensor, rows: int) -> WeightInt8 | None:
    """Return `weight`, `(o, i)`, for products with that many rows; None where it is to stay in float32.

    Raises
    ------
    RuntimeError
        If gradients are recorded: there are none through rounding.
    """
    use = _asked.get()
    if use is None:
        return None
    if torch.is_grad_enabled():
        raise RuntimeError("int8 has no gradients: run under torch.no_grad(), or train in float32 or bfloat16.")
    operators = int8_products()
    if operators is None or weight.dtype != torch.float32 or min(weight.shape) < LEAST_FEATURES:
        return None
    steps = weight.abs().amax(1).div_(operators.greatest_weight).clamp_min_(_LEAST_STEP)
    if not bool(steps.isfinite().all()):
        return None
    values = (weight / steps[:, None]).round_().to(torch.int8)
    use.weights += 1
    return WeightInt8(
        operators.pack(values, [rows, weight.shape[1]]), steps, torch.zeros(len(steps), dtype=torch.int64, device="cpu")
    )


def product(x: Tensor, weight: WeightInt8, bias: Tensor | None, activation: str) -> Tensor | None:
    """Return `activation(x weightᵀ + bias)`, `(..., o)`, of `x`, `(..., i)`; None where `x` is not finite."""
    operators = int8_products()
    low, high = (float(bound) for bound in torch.aminmax(x))
    if operators is None or not (isfinite(low) and isfinite(high)):
        return None
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / STEPS, _LEAST_STEP)
    zero_point = round(-low / step)
    # Conversion truncates. All values are positive, so a half more rounds them.
    shifted = torch.add(torch.tensor(zero_point + 0.5, device="cpu"), x, alpha=1 / step)
    return operators.linear(
        shifted.to(torch.uint8),
        step,
        zero_point,
        weight.values,
        weight.steps,
        weight.zero_points,
        bias,
        1.0,
        0,
        torch.float32,
        activation,
        [],
        "none",
    )
