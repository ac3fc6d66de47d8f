"""Products of complex numbers in one operator."""

from __future__ import annotations

import torch
from torch import Tensor

from hunterFormsBS.kernels.seam import Where, kernel
from hunterFormsBS.operations.complexNumbers import as_complex


@kernel(Where.EAGER, ordinary=True)
def complex_operator(x: Tensor, y: Tensor) -> Tensor | None:
    """Compute `complex_product` with complex dtypes, which PyTorch's compiler and ONNX support badly."""
    if x.dtype not in (torch.float32, torch.float64):
        return None
    return torch.view_as_real(as_complex(x) * as_complex(y))
