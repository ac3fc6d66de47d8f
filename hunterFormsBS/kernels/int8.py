"""Linear maps in 8-bit integers, on request: on a CPU, without gradients.

Activations are quantised dynamically, with one scale and one zero point per block of tokens; weights once per call of a
transformer, with one scale per output. Sums have 32 bits, and results are float32 [1]_:

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
"""Maps from or to fewer features, such as the gates of attention, are cheap and stay in float32."""

STEPS = 254
"""Steps between the least and the greatest activation: one fewer than 8 bits hold, so that rounding never overflows."""

_LEAST_STEP = 1e-30


@dataclass
class Use:
    """A count of what has been computed in int8."""

    weights: int = 0
    """Number of quantised weights."""


_asked: ContextVar[Use | None] = ContextVar("_asked", default=None)


@contextmanager
def in_int8() -> Generator[Use]:
    """Compute the linear maps of transformers in int8, in the current thread, wherever their kernels run on a CPU.

    Yields
    ------
    Use
        The count; 0 means that everything was computed in float32.
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
    """Return `weight`, `(o, i)`, quantised for products with this many rows; None if it stays in float32.

    Raises
    ------
    RuntimeError
        If gradients are recorded: rounding has none.
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
    # Conversion truncates, and all values are positive, so adding one half rounds.
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
