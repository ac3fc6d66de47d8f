"""Complex numbers kept as pairs of real ones on the last axis."""

from __future__ import annotations

import torch
from torch import Tensor


def as_complex(pairs: Tensor) -> Tensor:
    """View pairs on the last axis, `(..., 2)`, as complex numbers; a copy if they are not adjacent in memory."""
    strides = pairs.stride()
    in_pairs = strides[-1] == 1 and pairs.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in strides[:-1])
    return torch.view_as_complex(pairs if in_pairs else pairs.clone(memory_format=torch.contiguous_format))
