"""Linear maps, by the faster of the two libraries that PyTorch has for a CPU, with little stored for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hunterFormsBS.plain import is_eager_on_cpu, is_plain


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x weightᵀ + bias`, as `torch.nn.functional.linear` does.

    A linear map is a convolution with a kernel of one sample. PyTorch gives float32 matrix products to MKL, which
    leaves AVX-512 unused on AMD processors, and convolutions to oneDNN, which does not: half the time there, and nine
    tenths of it with AVX2.

    Parameters
    ----------
    x : Tensor
        `(..., i)`.
    weight : Tensor
        `(o, i)`.
    bias : Tensor, optional
        `(o)`.

    Returns
    -------
    Tensor
        `(..., o)`.
    """
    if not _convolution_is_faster(x, weight):
        return F.linear(x, weight, bias)
    image = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # one row of pixels, channels last in memory
    rows = F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1).contiguous()
    # Not `view`: autograd would forbid whoever calls this in a function of its own to change the result in place.
    return cast(Tensor, torch.ops.aten._unsafe_view(rows, [*x.shape[:-1], weight.shape[0]]))


def product_of_transposes(x: Tensor, y: Tensor) -> Tensor:
    """Return `xᵀ y`, `(m, n)`, of `x`, `(k, m)`, and `y`, `(k, n)`: the gradient of a weight, by way of `linear`."""
    # A convolution likes its weight to be the smaller factor.
    return linear(x.T, y.T) if x.shape[1] >= y.shape[1] else linear(y.T, x.T).T


def _convolution_is_faster(x: Tensor, weight: Tensor) -> bool:
    return (
        is_eager_on_cpu(x)
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and not torch.is_autocast_enabled("cpu")
    )


def can_bypass(*modules: tuple[nn.Module, type[nn.Module]]) -> bool:
    """Tell whether `linear_of` may stand for calls of these modules, and is of use: a compiler sees to it by itself."""
    return not torch.compiler.is_compiling() and all(is_plain(module, kind) for module, kind in modules)


def through(layers: nn.Module, x: Tensor) -> Tensor:
    """Call `layers`, except that without gradients plain linear layers, in plain `nn.Sequential`, are `linear`."""
    if torch.is_grad_enabled():
        return cast(Tensor, layers(x))
    if can_bypass((layers, nn.Sequential)):
        for layer in cast("nn.Sequential", layers):
            x = through(layer, x)
        return x
    if can_bypass((layers, nn.Linear)):
        plain = cast("nn.Linear", layers)
        return linear(x, plain.weight, plain.bias)
    return cast(Tensor, layers(x))


def linear_of(
    cheap: Callable[..., Tensor], inputs: tuple[Tensor, ...], linears: Sequence[nn.Linear]
) -> tuple[Tensor, ...]:
    """Apply each of `linears` to `cheap(*inputs)`, storing `inputs`, not the result of `cheap`, for the backward pass.

    The layers are not called, only their weights are used: ask `can_bypass` first.

    Parameters
    ----------
    cheap : Callable
        An elementwise function or a normalisation of `inputs`, without randomness.
    inputs : tuple of Tensor
        Its arguments, parameters included.
    linears : sequence of nn.Linear
        Layers that share the input.

    Returns
    -------
    tuple of Tensor
        One output for each layer.
    """
    if not torch.is_grad_enabled():
        hidden = cheap(*inputs)
        return tuple(linear(hidden, layer.weight, layer.bias) for layer in linears)
    weights = [parameter for layer in linears for parameter in (layer.weight, layer.bias)]
    return cast("tuple[Tensor, ...]", _LinearOf.apply(cheap, len(inputs), *inputs, *weights))  # type: ignore[no-untyped-call]


class _LinearOf(torch.autograd.Function):
    """Differentiable `linear_of`: matrix products are not repeated in the backward pass, only `cheap` is."""

    @staticmethod
    def forward(ctx: Any, cheap: Callable[..., Tensor], num_inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.cheap = cheap
        ctx.num_inputs = num_inputs
        ctx.save_for_backward(*tensors)
        hidden = cheap(*tensors[:num_inputs])
        weights = tensors[num_inputs:]
        return tuple(linear(hidden, w, b) for w, b in zip(weights[::2], weights[1::2], strict=True))

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors  # once: activation checkpointing unpacks them only once
        inputs, weights = saved[: ctx.num_inputs], saved[ctx.num_inputs :]
        needs = ctx.needs_input_grad[2:]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=False)]
        with torch.enable_grad():
            hidden = ctx.cheap(*leaves)
        rows = hidden.detach().flatten(0, -2)

        grad_hidden: Tensor | None = None
        grad_weights: list[Tensor | None] = []
        for index, grad in enumerate(grad_outputs):
            weight, bias = weights[2 * index : 2 * index + 2]
            need_weight, need_bias = needs[ctx.num_inputs + 2 * index : ctx.num_inputs + 2 * index + 2]
            grad_rows = grad.flatten(0, -2)
            # Under autocast the output, and so its gradient, is narrower than the stored tensors.
            narrow = grad.dtype
            grad_weights += [
                product_of_transposes(grad_rows, rows.to(narrow)).to(weight.dtype) if need_weight else None,
                grad_rows.sum(0).to(bias.dtype) if need_bias else None,
            ]
            part = linear(grad, weight.to(narrow).T)
            grad_hidden = part if grad_hidden is None else grad_hidden + part

        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        grads = iter(torch.autograd.grad(hidden, wanted, cast(Tensor, grad_hidden).to(hidden.dtype)) if wanted else ())
        grad_inputs = [next(grads) if leaf.requires_grad else None for leaf in leaves]
        return (None, None, *grad_inputs, *grad_weights)
