"""Linear maps, by the faster of the two libraries that PyTorch has for a CPU, with little stored for training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hunterFormsBS.kernels.seam import is_eager_on_cpu, is_plain

Activation: TypeAlias = Literal["none", "gelu", "tanh"]

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "gelu": F.gelu, "tanh": torch.tanh}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation = "none") -> Tensor:
    """Return `activation(x weightᵀ + bias)`, as `torch.nn.functional.linear` does.

    On a CPU PyTorch gives float32 matrix products to MKL, which leaves AVX-512 unused on AMD processors. oneDNN uses
    it, and takes half the time. It is called here by the operator that PyTorch's own compiler uses.

    Parameters
    ----------
    x : Tensor
        `(..., i)`.
    weight : Tensor
        `(o, i)`.
    bias : Tensor, optional
        `(o)`.
    activation : {'none', 'gelu', 'tanh'}
        What is applied to the results; with AVX-512 oneDNN does it before it writes them to memory.

    Returns
    -------
    Tensor
        `(..., o)`.
    """
    operator = _onednn_for(x, weight)
    if operator is None:
        return ACTIVATIONS[activation](F.linear(x, weight, bias))
    weight = _packed.weight(weight, x.numel() // x.shape[-1])
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return operator(x, weight, bias, activation, [], "none")
    # With AVX2 oneDNN is slower at these than PyTorch.
    return ACTIVATIONS[activation](operator(x, weight, bias, "none", [], "none"))


def product_of_transposes(x: Tensor, y: Tensor) -> Tensor:
    """Return `xᵀ y`, `(m, n)`, of `x`, `(k, m)`, and `y`, `(k, n)`: the gradient of a weight, by way of `linear`."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return x.T @ y  # With AVX2 oneDNN is slower at this than MKL.
    # oneDNN likes few rows and many columns.
    return linear(x.T, y.T) if x.shape[1] <= y.shape[1] else linear(y.T, x.T).T


class _Packed(threading.local):
    """Weights in oneDNN's own order of memory, by the place of the original: none outside `packing_weights`."""

    def __init__(self) -> None:
        self.weights: dict[tuple[object, ...], tuple[Tensor, Tensor]] | None = None

    def weight(self, weight: Tensor, rows: int) -> Tensor:
        """Return `weight` packed for inputs of that many rows, or as it is."""
        if self.weights is None:
            return weight
        place = (weight.data_ptr(), weight.shape, weight.stride())
        if place not in self.weights:
            # The original stays alive, or its place might be another's before long.
            self.weights[place] = weight, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        return self.weights[place][1]


_packed = _Packed()


@contextmanager
def packing_weights() -> Generator[None]:
    """Have oneDNN bring each weight into its own order once, not in every call of `linear`: 6 % of inference.

    Weights must not change before it ends. It holds for the thread that entered it.
    """
    before, _packed.weights = _packed.weights, {}
    try:
        yield
    finally:
        _packed.weights = before


def _onednn_for(x: Tensor, weight: Tensor) -> Callable[..., Tensor] | None:
    """Return oneDNN's operator where it is faster than what PyTorch does by itself, else None."""
    fits = (
        is_eager_on_cpu(x)
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and not torch.is_autocast_enabled("cpu")
    )
    return _onednn_operator() if fits else None


@cache
def _onednn_operator() -> Callable[..., Tensor] | None:
    """Return the operator, None where PyTorch has none, or, as it is not documented, one that takes other arguments.

    The same goes for the operator that packs weights for it.
    """
    one = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    try:
        operator = cast("Callable[..., Tensor]", torch.ops.mkldnn._linear_pointwise)
        operator(one, torch.ops.mkldnn._reorder_linear_weight(one, 1), None, "none", [], "none")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return operator


def can_bypass(*modules: tuple[nn.Module, type[nn.Module]]) -> bool:
    """Tell whether `linear_of` may stand for calls of these modules, and is of use: a compiler sees to it by itself."""
    return not torch.compiler.is_compiling() and all(is_plain(module, kind) for module, kind in modules)


def through(layers: nn.Module, x: Tensor) -> Tensor:
    """Call `layers`, except that plain linear layers in plain `nn.Sequential`, and a tanh behind them, are `linear`."""
    if not can_bypass((layers, nn.Sequential)):
        return cast(Tensor, layers(x))
    sequence = list(cast("nn.Sequential", layers))
    while sequence:
        layer = sequence.pop(0)
        if can_bypass((layer, nn.Linear)):
            has_tanh = bool(sequence) and can_bypass((sequence[0], nn.Tanh))
            (x,) = linear_of(None, (x,), (cast("nn.Linear", layer),), activation="tanh" if has_tanh else "none")
            del sequence[: int(has_tanh)]
        else:
            x = through(layer, x)
    return x


def linear_of(
    cheap: Callable[..., Tensor] | None,
    inputs: tuple[Tensor, ...],
    linears: Sequence[nn.Linear],
    *,
    activation: Literal["none", "tanh"] = "none",
) -> tuple[Tensor, ...]:
    """Apply each of `linears` to `cheap(*inputs)`, storing `inputs`, not the result of `cheap`, for the backward pass.

    The layers are not called, only their weights are used: ask `can_bypass` first.

    Parameters
    ----------
    cheap : Callable, optional
        An elementwise function or a normalisation of `inputs`, without randomness. None: the only input as it is.
    inputs : tuple of Tensor
        Its arguments, parameters included.
    linears : sequence of nn.Linear
        Layers that share the input.
    activation : {'none', 'tanh'}
        What follows each layer. With one, outputs are stored as well.

    Returns
    -------
    tuple of Tensor
        One output for each layer.
    """
    weights = [parameter for layer in linears for parameter in (layer.weight, layer.bias)]
    if torch.is_grad_enabled():
        return cast("tuple[Tensor, ...]", _LinearOf.apply(cheap, activation, len(inputs), *inputs, *weights))  # type: ignore[no-untyped-call]
    return _outputs(cheap, activation, inputs, weights)


def _outputs(
    cheap: Callable[..., Tensor] | None,
    activation: Activation,
    inputs: Sequence[Tensor],
    weights: Sequence[Any],
) -> tuple[Tensor, ...]:
    hidden = inputs[0] if cheap is None else cheap(*inputs)
    pairs = zip(weights[::2], weights[1::2], strict=True)
    return tuple(linear(hidden, weight, bias, activation=activation) for weight, bias in pairs)


class _LinearOf(torch.autograd.Function):
    """Differentiable `linear_of`: matrix products are not repeated in the backward pass, only `cheap` is."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, cheap: Callable[..., Tensor] | None, activation: Activation, num_inputs: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.cheap = cheap
        ctx.num_inputs = num_inputs
        outputs = _outputs(cheap, activation, tensors[:num_inputs], tensors[num_inputs:])
        ctx.num_stored = len(outputs) if activation == "tanh" else 0
        ctx.save_for_backward(*outputs[: ctx.num_stored], *tensors)
        return outputs

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors  # once: activation checkpointing unpacks them only once
        outputs, tensors = saved[: ctx.num_stored], saved[ctx.num_stored :]
        inputs, weights = tensors[: ctx.num_inputs], tensors[ctx.num_inputs :]
        needs = ctx.needs_input_grad[3:]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=False)]
        with torch.enable_grad():
            hidden = leaves[0] if ctx.cheap is None else ctx.cheap(*leaves)
        # With gaps between rows, here and below, oneDNN would take hundreds of times as long.
        rows = hidden.detach().flatten(0, -2).contiguous()
        if outputs:
            pairs = zip(grad_outputs, outputs, strict=True)
            grad_outputs = tuple(torch.ops.aten.tanh_backward(grad, output) for grad, output in pairs)

        grad_hidden: Tensor | None = None
        grad_weights: list[Tensor | None] = []
        for index, grad in enumerate(grad_outputs):
            weight, bias = weights[2 * index : 2 * index + 2]
            need_weight, need_bias = needs[ctx.num_inputs + 2 * index : ctx.num_inputs + 2 * index + 2]
            grad_rows = grad.flatten(0, -2).contiguous()
            # Under autocast the output, and so its gradient, is narrower than the stored tensors.
            narrow = grad.dtype
            grad_weights += [
                product_of_transposes(grad_rows, rows.to(narrow)).to(weight.dtype) if need_weight else None,
                grad_rows.sum(0).to(bias.dtype) if need_bias else None,
            ]
            part = linear(grad_rows, weight.to(narrow).T)
            grad_hidden = part if grad_hidden is None else grad_hidden + part

        grad_hidden = cast(Tensor, grad_hidden).to(hidden.dtype).view(hidden.shape)
        if ctx.cheap is None:
            return (None, None, None, grad_hidden, *grad_weights)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grads = iter(torch.autograd.grad(hidden, wanted, grad_hidden) if wanted else ())
        grad_inputs = [next(grads) if leaf.requires_grad else None for leaf in leaves]
        return (None, None, None, *grad_inputs, *grad_weights)
