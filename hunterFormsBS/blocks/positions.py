"""Where positions enter attention: rotary and polar embeddings.

Both turn packed queries, keys and values into what the attention kernel takes, and both are a complex
multiplication by a table of unit vectors, one for each position and frequency. The table depends on the
frequencies, the length and the device only, so a transformer computes it once a call. Frequencies and tables
stay float32 when the model is cast: in bfloat16 an angle of 400 rad would be off by more than a radian.

PyTorch's compiler and ONNX have no complex numbers worth using, so compiled graphs use real arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hunterFormsBS.blocks.norm import at_least_float32


def unit_vectors(angles: Tensor) -> Tensor:
    """Return `(..., 2)`, cosine and sine of `angles`, in radians."""
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def complex_product(x: Tensor, y: Tensor) -> Tensor:
    """Multiply complex numbers kept as real pairs on the last axis, `(..., 2)`, broadcasting the others."""
    if torch.compiler.is_compiling():
        (a, b), (c, d) = x.unbind(-1), y.unbind(-1)
        return torch.stack((a * c - b * d, a * d + b * c), dim=-1)
    return torch.view_as_real(torch.view_as_complex(x) * torch.view_as_complex(y))


class PositionEmbedding(nn.Module):
    """Base of the two embeddings: keeps its tensors in the dtype that they were made in."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `Module.to` and its kin end here. Run the change, then undo what it did to the dtype.
        before = {name: tensor.data for name, tensor in self._tensors()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in self._tensors():
            dtype = before[name].dtype
            if tensor.dtype != dtype:
                source = tensor if before[name].is_meta else before[name]
                gradient, tensor.grad = tensor.grad, None
                tensor.data = source.to(device=tensor.device, dtype=dtype)
                tensor.grad = None if gradient is None else gradient.to(dtype)
        return self

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # With assign=True the tensors of the state dict, whatever their dtype, would become the module's own.
        for name, tensor in self._tensors():
            if (key := prefix + name) in state_dict:
                state_dict[key] = state_dict[key].to(tensor.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # pyright: ignore[reportUnknownMemberType]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]


class RotaryEmbedding(PositionEmbedding):
    """Rotate interleaved pairs of queries and keys by an angle that grows with position: RoPE [1]_.

    Parameters
    ----------
    dim_head : int
        Features of one head, even.
    theta : float
        Ratio of the shortest to the longest wavelength, in the limit.

    Attributes
    ----------
    freqs : nn.Parameter
        `(dim_head / 2)`, radians per position, not trained.

    References
    ----------
    .. [1] Su et al., RoFormer, Neurocomputing 568:127063 (2024), arXiv 2104.09864.
    """

    def __init__(self, dim_head: int, theta: float = 10000.0) -> None:
        super().__init__()
        if dim_head % 2:
            raise ValueError(
                f"dim_head={dim_head} is odd, and rotary embeddings turn pairs: make it even, or use_pope=True."
            )
        exponents = torch.arange(0, dim_head, 2).float() / dim_head
        self.freqs = nn.Parameter(1.0 / theta**exponents, requires_grad=False)

    def table(self, length: int) -> tuple[Tensor, ...]:
        """Return one unit vector for each position and pair, `(length, 1, 1, dim_head / 2, 2)`."""
        positions = torch.arange(length, device=self.freqs.device, dtype=self.freqs.dtype)
        return (unit_vectors(rearrange(positions, "n -> n 1 1 1") * self.freqs),)

    def place(self, qkv: Tensor, table: tuple[Tensor, ...], *, may_overwrite: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate the queries and keys of `qkv`.

        Parameters
        ----------
        qkv : Tensor
            `(b, n, 3, h, dim_head)`.
        table : tuple of Tensor
            From `table(n)`.
        may_overwrite : bool
            Whether the memory of `qkv` may be reused: nobody else needs it. Takes a quarter of the time, and no memory.

        Returns
        -------
        tuple of Tensor
            Queries, keys and values, each `(b, h, n, dim_head)`.
        """
        (vectors,) = table
        if may_overwrite and qkv.dtype == vectors.dtype and not torch.compiler.is_compiling():
            rotate = cast("Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]", _RotateInPlace.apply)
            return (rotate if qkv.requires_grad else _rotate_in_place)(qkv, vectors)
        pairs = rearrange(qkv[:, :, :2], "b n two h (e c) -> b n two h e c", c=2)
        turned = complex_product(pairs.to(at_least_float32(qkv.dtype)), vectors).flatten(-2).to(qkv.dtype)
        q, k = rearrange(turned, "b n two h e -> two b h n e").unbind(0)
        return q, k, rearrange(qkv[:, :, 2], "b n h e -> b h n e")


class PolarEmbedding(PositionEmbedding):
    """Let magnitude say what and angle say where: PoPE [1]_.

    A feature becomes a complex number with softplus of the feature as magnitude and an angle that depends on
    position alone, plus a learned bias on the keys; attention takes the real part of their product.

    Parameters
    ----------
    dim_head, heads : int
        Features of one head, and heads.
    theta : float
        As for `RotaryEmbedding`.

    Attributes
    ----------
    inv_freqs : Tensor
        Buffer, `(dim_head)`, radians per position.
    bias : nn.Parameter
        `(heads, dim_head)`, radians, used within [-2π, 0].

    References
    ----------
    .. [1] Gopalakrishnan et al., Decoupling the "What" and "Where" with Polar Coordinate Positional Embeddings,
       2025, arXiv 2509.10534.
    """

    inv_freqs: Tensor

    def __init__(self, dim_head: int, heads: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.register_buffer("inv_freqs", theta ** -(torch.arange(dim_head).float() / dim_head))
        self.bias = nn.Parameter(torch.zeros(heads, dim_head))

    def table(self, length: int) -> tuple[Tensor, ...]:
        """Return unit vectors for queries, `(length, 1, dim_head, 2)`, and keys, `(length, heads, dim_head, 2)`."""
        positions = torch.arange(length, device=self.inv_freqs.device, dtype=self.inv_freqs.dtype)
        angles = rearrange(positions, "n -> n 1 1") * self.inv_freqs
        return unit_vectors(angles), unit_vectors(angles + self.bias.clamp(-2 * pi, 0.0))

    def place(self, qkv: Tensor, table: tuple[Tensor, ...], *, may_overwrite: bool) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """As `RotaryEmbedding.place`, but queries and keys are real and imaginary parts, `(b, h, n, 2 · dim_head)`."""
        q, k, v = qkv.unbind(2)

        def polar(x: Tensor, vectors: Tensor) -> Tensor:
            magnitude = F.softplus(x.to(at_least_float32(x.dtype)))
            return rearrange(magnitude[..., None] * vectors, "b n h e c -> b h n (e c)").to(x.dtype)

        return polar(q, table[0]), polar(k, table[1]), rearrange(v, "b n h e -> b h n e")


def _complex_pairs(x: Tensor) -> Tensor:
    """View neighbours on the last axis as complex numbers: an error, never a copy, where memory has them apart."""
    return torch.view_as_complex(rearrange(x, "... (e c) -> ... e c", c=2))


def _rotate_in_place(qkv: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _complex_pairs(qkv[:, :, :2]).mul_(torch.view_as_complex(vectors))
    q, k, v = rearrange(qkv, "b n three h e -> three b h n e").unbind(0)
    return q, k, v


class _RotateInPlace(torch.autograd.Function):
    """Differentiable `_rotate_in_place`: gradients are turned back by the same angles, into one packed tensor."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Not marked as dirty, which would cost two more copies of the gradient: nobody else sees this memory.
        ctx.save_for_backward(vectors)
        return _rotate_in_place(qkv, vectors)

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (vectors,) = ctx.saved_tensors
        back = torch.view_as_complex(vectors)[:, 0].conj().resolve_conj()
        q, k, v = (rearrange(grad, "b h n e -> b n h e") for grad in grads)
        packed = torch.empty((*v.shape[:2], 3, *v.shape[2:]), dtype=v.dtype, device=v.device)
        for index, grad in enumerate((q, k)):
            # What follows attention may send gradients in any order of memory.
            pairs = _complex_pairs(grad if grad.stride(-1) == 1 else grad.contiguous())
            torch.mul(pairs, back, out=_complex_pairs(packed[:, :, index]))
        packed[:, :, 2] = v
        return packed, None
