"""Linear maps by the faster of PyTorch's two CPU libraries, storing little for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hunterFormsBS.kernels.derivatives import current_autocast, gradients_of
from hunterFormsBS.kernels.int8 import WeightInt8, product, quantised
from hunterFormsBS.kernels.internals import OneDNN, counted_as_product, multiplies_bfloat16, onednn, tanh_backward

Activation: TypeAlias = Literal["none", "gelu", "tanh"]

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "gelu": F.gelu, "tanh": torch.tanh}

PackedWeight: TypeAlias = Tensor | WeightInt8
"""A weight in oneDNN's memory layout, in the dtype of its products or in int8."""

Packed: TypeAlias = Mapping[nn.Linear, PackedWeight]
"""Packed weights, made for one call of an outer layer and passed to inner ones."""

NOT_PACKED: Packed = {}


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = "none",
    packed: PackedWeight | None = None,
) -> Tensor:
    """Return `activation(x weightᵀ + bias)`, as `torch.nn.functional.linear` does.

    On a CPU PyTorch uses MKL for float32 matrix products, which does not use AVX-512 on AMD processors. oneDNN does,
    and takes half the time. In bfloat16, also under autocast, it avoids copies around the product.

    Parameters
    ----------
    x : Tensor
        `(..., i)`.
    weight : Tensor
        `(o, i)`.
    bias : Tensor, default None
        `(o)`.
    activation : {'none', 'gelu', 'tanh'}
        Applied to the results; with AVX-512 oneDNN does so before it writes them to memory.
    packed : Tensor, default None
        `weight` as `pack` returns it.

    Returns
    -------
    Tensor
        `(..., o)`.
    """
    products = _products_for(x, weight)
    if products is None:
        return ACTIVATIONS[activation](F.linear(x, weight, bias))
    operators, dtype = products
    # oneDNN reads a bias as contiguous memory, whatever its strides.
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype).contiguous()
    fused = activation if torch.backends.cpu.get_cpu_capability() == "AVX512" else "none"
    with counted_as_product(x, weight):
        out = product(x, packed, bias, fused) if isinstance(packed, WeightInt8) else None
        if out is None:
            dense = packed if isinstance(packed, Tensor) else weight
            out = operators.linear(x, dense, bias, fused, [], "none")
    # With AVX2 oneDNN is slower at activations than PyTorch.
    return out if fused == activation else ACTIVATIONS[activation](out)


def pack(linears: Iterable[nn.Linear], x: Tensor, rows: int) -> dict[nn.Linear, PackedWeight]:
    """Convert weights to oneDNN's memory layout once, not in every call of `linear`: 6 % of inference.

    Within `in_int8` they are also quantised, if that is faster.

    Parameters
    ----------
    linears : iterable of nn.Linear
        Layers whose weights do not change until the last use of the result.
    x : Tensor
        A tensor with the device and the dtype of their input.
    rows : int
        The usual number of rows of their input.
    """
    packed: dict[nn.Linear, PackedWeight] = {}
    for layer in linears:
        if products := _products_for(x, layer.weight):
            weight = layer.weight.detach().to(products.dtype)
            packed[layer] = quantised(weight, rows) or products.operators.pack(weight, rows)
    return packed


def product_of_transposes(x: Tensor, y: Tensor) -> Tensor:
    """Return `xᵀ y`, `(m, n)`, of `x`, `(k, m)`, and `y`, `(k, n)`: the gradient of a weight, by way of `linear`."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return x.T @ y  # With AVX2 oneDNN is slower at this than MKL.
    # oneDNN is fastest with few rows and many columns.
    return linear(x.T, y.T) if x.shape[1] <= y.shape[1] else linear(y.T, x.T).T


class Products(NamedTuple):
    """oneDNN's operators, and the dtype of the products."""

    operators: OneDNN
    dtype: torch.dtype


def _products_for(x: Tensor, weight: Tensor) -> Products | None:
    """Return how to multiply if oneDNN is faster than PyTorch's default, else None."""
    if x.device.type != "cpu" or type(x).__name__ == "FakeTensor" or x.numel() == 0:
        return None
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        dtypes: tuple[torch.dtype, ...] = (torch.float32, dtype)
    else:
        dtype = x.dtype
        dtypes = (dtype,)
    if x.dtype not in dtypes or weight.dtype not in dtypes:
        return None
    serves = dtype == torch.float32 or (dtype == torch.bfloat16 and multiplies_bfloat16())
    capable = torch.backends.cpu.get_cpu_capability().startswith("AVX") and bool(torch.backends.mkldnn.enabled)
    operators = onednn(dtype) if serves and capable else None
    return None if operators is None else Products(operators, dtype)


def has_faster_products(x: Tensor, weight: Tensor) -> bool:
    """Tell whether `linear` is faster here than PyTorch's own product."""
    return _products_for(x, weight) is not None


def linear_of(
    cheap: Callable[..., Tensor] | None,
    inputs: tuple[Tensor, ...],
    linears: Sequence[nn.Linear],
    *,
    activation: Activation = "none",
    packed: Packed = NOT_PACKED,
) -> tuple[Tensor, ...]:
    """Apply each of `linears` to `cheap(*inputs)`; store `inputs`, not the result of `cheap`, for the backward pass.

    Only the weights of the layers are used; the layers are not called.

    Parameters
    ----------
    cheap : Callable or None
        An elementwise function or a normalisation of `inputs`, without randomness. None: the only input as it is.
    inputs : tuple of Tensor
        Its arguments, parameters included.
    linears : sequence of nn.Linear
        Layers that share the input.
    activation : {'none', 'tanh', 'gelu'}
        Applied after each layer. With tanh, outputs are stored as well; with GELU there must be no gradient.
    packed : mapping
        The result of `pack` for these layers.

    Returns
    -------
    tuple of Tensor
        One output for each layer.
    """
    weights = [parameter for layer in linears for parameter in (layer.weight, layer.bias)]
    arguments = (cheap, activation, [packed.get(layer) for layer in linears])
    if torch.is_grad_enabled():
        return cast("tuple[Tensor, ...]", _LinearOf.apply(*arguments, len(inputs), *inputs, *weights))  # type: ignore[no-untyped-call]
    return _outputs(*arguments, inputs, weights)


def _rows(x: Tensor) -> Tensor:
    """Return `(..., d)` as `(rows, d)`, contiguous: with gaps between rows oneDNN takes hundreds of times as long."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def _outputs(
    cheap: Callable[..., Tensor] | None,
    activation: Activation,
    packed: Sequence[PackedWeight | None],
    inputs: Sequence[Tensor],
    weights: Sequence[Any],
) -> tuple[Tensor, ...]:
    hidden = inputs[0] if cheap is None else cheap(*inputs)
    triples = zip(weights[::2], weights[1::2], packed, strict=True)
    return tuple(linear(hidden, weight, bias, activation=activation, packed=one) for weight, bias, one in triples)


class _LinearOf(torch.autograd.Function):
    """Differentiable `linear_of`: the backward pass recomputes only `cheap`, no matrix products."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        cheap: Callable[..., Tensor] | None,
        activation: Activation,
        packed: Sequence[PackedWeight | None],
        num_inputs: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.cheap = cheap
        ctx.autocast = current_autocast(tensors[0])
        ctx.activation = activation
        ctx.num_inputs = num_inputs
        outputs = _outputs(cheap, activation, packed, tensors[:num_inputs], tensors[num_inputs:])
        ctx.num_stored = len(outputs) if activation == "tanh" else 0
        ctx.save_for_backward(*outputs[: ctx.num_stored], *tensors)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors  # read once: activation checkpointing unpacks them only once
        outputs, tensors = saved[: ctx.num_stored], saved[ctx.num_stored :]
        needs = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():

            def formula(*tensors: Any) -> tuple[Tensor, ...]:
                inputs, weights = tensors[: ctx.num_inputs], tensors[ctx.num_inputs :]
                hidden = inputs[0] if ctx.cheap is None else ctx.cheap(*inputs)
                pairs = zip(weights[::2], weights[1::2], strict=True)
                return tuple(ACTIVATIONS[ctx.activation](F.linear(hidden, *pair)) for pair in pairs)

            return (None, None, None, None, *gradients_of(formula, tensors, needs, grad_outputs, ctx.autocast))

        inputs, weights = tensors[: ctx.num_inputs], tensors[ctx.num_inputs :]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=False)]
        with torch.enable_grad():
            hidden = leaves[0] if ctx.cheap is None else ctx.cheap(*leaves)
        rows = _rows(hidden.detach())
        if outputs:
            pairs = zip(grad_outputs, outputs, strict=True)
            grad_outputs = tuple(tanh_backward(grad, output) for grad, output in pairs)

        grad_hidden: Tensor | None = None
        grad_weights: list[Tensor | None] = []
        for index, grad in enumerate(grad_outputs):
            weight, bias = weights[2 * index : 2 * index + 2]
            need_weight, need_bias = needs[ctx.num_inputs + 2 * index : ctx.num_inputs + 2 * index + 2]
            grad_rows = _rows(grad)
            # Under autocast the output, and so its gradient, has a narrower dtype than the stored tensors.
            narrow = grad.dtype
            grad_weights += [
                product_of_transposes(grad_rows, rows.to(narrow)).to(weight.dtype) if need_weight else None,
                grad_rows.sum(0).to(bias.dtype) if need_bias else None,
            ]
            part = linear(grad_rows, weight.to(narrow).T)
            grad_hidden = part if grad_hidden is None else grad_hidden + part

        grad_hidden = cast(Tensor, grad_hidden).to(hidden.dtype).view(hidden.shape)
        if ctx.cheap is None:
            return (None, None, None, None, grad_hidden, *grad_weights)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grads = iter(torch.autograd.grad(hidden, wanted, grad_hidden) if wanted else ())
        grad_inputs = [next(grads) if leaf.requires_grad else None for leaf in leaves]
        return (None, None, None, None, *grad_inputs, *grad_weights)
