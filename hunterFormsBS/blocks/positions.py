"""Position embeddings: rotary and polar.

Both multiply complex numbers by a table of unit vectors, one for each position and frequency. The table depends only on
the frequencies and the length. Frequencies and tables stay in float32 when the model is cast: in bfloat16 an angle of
400 rad would be wrong by more than a radian.

Axis letters in this module: b sequences, n positions, h heads, e features of one head, p pairs of them, c real and
imaginary part.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from math import pi
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.kernels.complexNumbers import complex_operator
from hunterFormsBS.kernels.seam import Layer, served_by
from hunterFormsBS.operations.norm import at_least_float32


def unit_vectors(angles: Tensor) -> Tensor:
    """Return `(..., 2)`, cosine and sine of `angles`, in radians."""
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


@served_by(complex_operator)
def complex_product(x: Tensor, y: Tensor) -> Tensor:
    """Multiply complex numbers kept as real pairs on the last axis, `(..., 2)`, broadcasting the others."""
    (a, b), (c, d) = x.unbind(-1), y.unbind(-1)
    return torch.stack((a * c - b * d, a * d + b * c), dim=-1)


class PositionEmbedding(Layer):
    """Base class: embeds positions in queries and keys, and keeps its own tensors in full precision.

    Subclasses need a `name`, a `table` and an `embed`.
    """

    name: ClassVar[str]
    """The attribute of `Attention` that holds it, and the first part of its keys in a state dict."""

    turns_pairs: ClassVar[bool] = False
    """Whether `table` is one tensor of unit vectors, `(n, p, 2)`, by which `embed` rotates neighbouring features."""

    frequencies: ClassVar[str] = ""
    """The attribute that holds frequencies. They are never trained, so copies stay valid."""

    @abstractmethod
    def table(self, length: int) -> tuple[Tensor, ...]:
        """Return what depends only on positions 0 to `length` - 1, so that layers can share it."""

    @abstractmethod
    def embed(self, q: Tensor, k: Tensor, table: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Embed positions, given as `table(n)`, in queries and keys, `(b, h, n, e)`."""

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Embed positions in queries and keys, `(b, h, n, e)`; the result may be wider."""
        return self.embed(q, k, self.table(q.shape[-2]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `Module.to` and similar methods call this. Let them work, then restore the dtype.
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
        # With assign=True the tensors of the state dict would become the module's own in any dtype.
        for name, tensor in self._tensors():
            if (key := prefix + name) in state_dict:
                state_dict[key] = state_dict[key].to(tensor.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # pyright: ignore[reportUnknownMemberType]

    @staticmethod
    def exact(frequencies: Tensor, formula: Callable[[], Tensor]) -> Tensor:
        """Return frequencies in full precision even if something has cast them.

        Some programs cast parameters where this module cannot undo it, for example FSDP2 with mixed precision in each
        forward pass. Frequencies that equal the rounded formula are replaced by the formula.
        """
        if frequencies.dtype.itemsize >= torch.float32.itemsize:
            return frequencies
        by_formula = formula().to(frequencies.device)
        return torch.where(by_formula.to(frequencies.dtype) == frequencies, by_formula, frequencies.float())

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]


class RotaryEmbedding(PositionEmbedding):
    """Rotate interleaved pairs of queries and keys by an angle that grows with position: RoPE [1]_.

    Parameters
    ----------
    dim_head : int
        Features of one head, even.
    theta : float
        Ratio of the longest to the shortest wavelength, in the limit of many features.

    Attributes
    ----------
    freqs : nn.Parameter
        `(dim_head / 2)`, radians per position, not trained.

    References
    ----------
    .. [1] Su et al., RoFormer, Neurocomputing 568:127063 (2024), arXiv 2104.09864.
    """

    name = "rotary_embed"
    frequencies = "freqs"
    turns_pairs = True

    def __init__(self, dim_head: int, theta: float = 10000.0) -> None:
        super().__init__()
        if dim_head % 2:
            raise ValueError(
                f"dim_head={dim_head} is odd, and rotary embeddings turn pairs: make it even, or use_pope=True."
            )
        self.theta = theta
        self.freqs = nn.Parameter(torch.empty(dim_head // 2), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the frequencies by their formula, computed on a CPU: the same on every device."""
        with torch.no_grad():
            self.freqs.copy_(self._by_formula())

    def _by_formula(self) -> Tensor:
        exponents = torch.arange(len(self.freqs), device="cpu").float() / len(self.freqs)
        return 1.0 / self.theta**exponents

    def table(self, length: int) -> tuple[Tensor, ...]:
        """Return one unit vector for each position and pair, `(length, p, 2)`."""
        freqs = self.exact(self.freqs, self._by_formula)
        positions = torch.arange(length, device=freqs.device, dtype=freqs.dtype)
        return (unit_vectors(positions[:, None] * freqs),)

    def embed(self, q: Tensor, k: Tensor, table: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys; shapes stay as they are."""

        def rotate(x: Tensor) -> Tensor:
            pairs = rearrange(x.to(at_least_float32(x.dtype)), "b h n (p c) -> b h n p c", c=2)
            return complex_product(pairs, table[0]).flatten(-2).to(x.dtype)

        return rotate(q), rotate(k)


def add_sinusoids(x: Tensor, theta: float = 10000.0) -> Tensor:
    """Add to tokens `(b, n, d)` sines and cosines of their positions, in turn, instead of rotating queries and keys.

    As the first Transformer [1]_ does, and Edge-BS-RoFormer without rotary positions.

    References
    ----------
    .. [1] Vaswani et al., Attention Is All You Need, NeurIPS 2017, arXiv 1706.03762.
    """
    length, dim = x.shape[-2:]
    dtype = at_least_float32(x.dtype)
    positions = torch.arange(length, device=x.device, dtype=dtype)
    pairs = torch.arange(dim // 2, device=x.device, dtype=dtype)
    angles = positions[:, None] * theta ** (-2 * pairs / dim)
    return x + torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).to(x.dtype)


class PolarEmbedding(PositionEmbedding):
    """Polar position embedding, PoPE [1]_: magnitudes depend on content, angles on position.

    A feature becomes a complex number: its magnitude is the softplus of the feature, its angle depends only on
    position, plus a learned bias for keys. Attention takes the real part of their product.

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

    name = "pope_embed"
    frequencies = "inv_freqs"
    inv_freqs: Tensor

    def __init__(self, dim_head: int, heads: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.theta = theta
        self.register_buffer("inv_freqs", torch.empty(dim_head))
        self.bias = nn.Parameter(torch.empty(heads, dim_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the frequencies by their formula, computed on a CPU, and the bias to 0."""
        with torch.no_grad():
            self.inv_freqs.copy_(self._by_formula())
            self.bias.zero_()

    def _by_formula(self) -> Tensor:
        features = torch.arange(len(self.inv_freqs), device="cpu").float()
        return self.theta ** -(features / len(self.inv_freqs))

    def table(self, length: int) -> tuple[Tensor, ...]:
        """Return unit vectors for queries, `(length, e, 2)`, and keys, `(h, length, e, 2)`."""
        inv_freqs = self.exact(self.inv_freqs, self._by_formula)
        positions = torch.arange(length, device=inv_freqs.device, dtype=inv_freqs.dtype)
        angles = positions[:, None] * inv_freqs
        return unit_vectors(angles), unit_vectors(angles + self.limited_bias().to(angles.dtype)[:, None])

    def limited_bias(self) -> Tensor:
        """Return the bias within [-2π, 0], with gradient 1 at both bounds, because it starts at one of them."""
        # PyTorch's `clamp` had that gradient up to 2.13, and has 0 there since.
        outside = (self.bias < -2 * pi) | (self.bias > 0)
        return torch.where(outside, self.bias.detach().clamp(-2 * pi, 0.0), self.bias)

    def embed(self, q: Tensor, k: Tensor, table: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Turn features into real and imaginary parts: return queries and keys `(b, h, n, 2 · e)`."""

        def polar(x: Tensor, vectors: Tensor) -> Tensor:
            magnitude = F.softplus(x.to(at_least_float32(x.dtype)))
            return (magnitude[..., None] * vectors).flatten(-2).to(x.dtype)

        return polar(q, table[0]), polar(k, table[1])
