"""Root mean square normalisation, and the dtype of statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

# torch.linalg has no annotations.
vector_norm = cast("Callable[..., Tensor]", torch.linalg.vector_norm)  # pyright: ignore[reportUnknownMemberType]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute statistics and spectra in: float32 for half types, else `dtype` itself."""
    return torch.float32 if dtype.itemsize < torch.float32.itemsize else dtype


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """Scale the last axis to root mean square 1, then by `gamma`: `x / max(‖x‖₂, 1e-12) · √d · gamma` [1]_.

    Computed in float32 (float64 for float64 input), returned in the narrower of the dtypes of `x` and `gamma`.

    Parameters
    ----------
    x : Tensor
        `(..., d)`.
    gamma : Tensor
        `(d)`, or any shape that broadcasts to that of `x`.

    References
    ----------
    .. [1] Zhang & Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019, arXiv 1910.07467.
    """
    dtype = at_least_float32(x.dtype)
    wide = x.to(dtype)
    length = vector_norm(wide, dim=-1, keepdim=True)
    normed: Tensor = wide * (x.shape[-1] ** 0.5 / length.clamp_min(1e-12)) * gamma.to(dtype)
    return normed.to(x.dtype if x.dtype.itemsize <= gamma.dtype.itemsize else gamma.dtype)
