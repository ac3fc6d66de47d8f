"""The undocumented parts of PyTorch that this package relies on, with their probes.

If a part that the seam needs is missing, no kernel runs in eager mode. If an operator is missing or returns wrong
results, a documented one replaces it.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple, cast

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn, overrides
from torch.nn.modules import module as module_internals
from torch.utils import _python_dispatch as dispatch_modes

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes with a module's hooks; those of all modules are in `torch.nn.modules.module`, prefixed with `_global`."""

_PARTS_ASKED: tuple[tuple[object, str], ...] = (
    *((module_internals, f"_global{name}") for name in HOOKS),
    (torch._C, "_are_functorch_transforms_active"),
    (torch._C, "_len_torch_dispatch_stack"),
    (torch._C, "_len_torch_function_stack"),
    (torch._C, "_get_tracing_state"),
    (forward_ad, "_current_level"),
    (dispatch_modes, "_get_current_dispatch_mode_stack"),
    (overrides, "_get_current_function_mode_stack"),
)


@cache
def can_ask() -> bool:
    """Tell whether PyTorch has all parts that the functions below need."""
    return all(hasattr(owner, name) for owner, name in _PARTS_ASKED) and all(
        isinstance(vars(nn.Identity()).get(name), dict) for name in HOOKS
    )


def has_hooks(module: nn.Module) -> bool:
    """Tell whether `module` has a hook of its own."""
    state = module.__dict__
    first, second, third, fourth = HOOKS
    # Called for every module in every call: `any` over a generator would take several times as long.
    return bool(state[first] or state[second] or state[third] or state[fourth])


def is_watched_everywhere() -> bool:
    """Tell whether there are global module hooks."""
    return any(getattr(module_internals, f"_global{name}") for name in HOOKS)


def is_transformed() -> bool:
    """Tell whether a transformation of `torch.func`, or forward-mode differentiation, is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_recorded() -> bool:
    """Tell whether a mode, or `torch.jit.trace`, sees single operators and may keep, count or replay them."""
    if cast(Any, torch._C)._get_tracing_state() is not None:
        return True
    if torch._C._len_torch_dispatch_stack():
        modes = dispatch_modes._get_current_dispatch_mode_stack()
        # Fake tensors do not record operators.
        if any(type(mode).__name__ != "FakeTensorMode" for mode in modes):
            return True
    if torch._C._len_torch_function_stack():
        stack = cast(Any, overrides)._get_current_function_mode_stack()
        # `torch.set_default_device` and `with torch.device(...)` only choose the device of new tensors.
        if any(type(mode).__name__ != "DeviceContext" for mode in stack):
            return True
    return False


class RunningCheckpoint(NamedTuple):
    """An activation checkpoint of `torch.utils.checkpoint` whose function is running."""

    record: dict[str, Any]
    """Attributes of PyTorch's record of it, from the forward pass to the last backward pass."""
    repetition: dict[str, Any] | None
    """Attributes of this recomputation in a backward pass; None in the forward pass."""


def running_checkpoint() -> RunningCheckpoint | None:
    """Return the innermost non-reentrant activation checkpoint whose function is running.

    None also if this PyTorch lacks the necessary parts.
    """
    top: Callable[[bool], Any] | None = getattr(cast(Any, torch._C)._autograd, "_top_saved_tensors_default_hooks", None)
    hooks = None if top is None else top(True)
    pack: Any = hooks[0] if hooks else None
    if getattr(pack, "__module__", "") != "torch.utils.checkpoint":
        return None
    plain: Any = inspect.unwrap(pack)
    held: dict[str, Any] = dict(zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=False))
    if "target_frame_ref" in held:
        return RunningCheckpoint(held["target_frame_ref"].cell_contents().__dict__, pack.__dict__)
    return RunningCheckpoint(held["frame"].cell_contents.__dict__, None) if "frame" in held else None


def is_simple(tensor: Tensor) -> bool:
    """Tell whether `tensor` is not a subclass that behaves differently, such as a quantised or a distributed tensor."""
    return type(tensor) in (Tensor, nn.Parameter) or type(tensor).__name__ == "FakeTensor"


class OneDNN(NamedTuple):
    """Two operators that PyTorch's own compiler uses on a CPU."""

    linear: Callable[..., Tensor]
    """Takes x `(..., i)`, weight `(o, i)`, bias, name of an activation, its scalars and its algorithm."""
    pack: Callable[[Tensor, int], Tensor]
    """Takes a weight and a number of rows; returns the weight in oneDNN's memory layout, for `linear`."""


@cache
def onednn(dtype: torch.dtype = torch.float32) -> OneDNN | None:
    """Return oneDNN's operators, None where this PyTorch lacks them, or they do not compute in `dtype` as they should.

    They do not where the environment limits oneDNN's instructions, for one.
    """
    x, weight, bias = (torch.tensor(values, device="cpu", dtype=dtype) for values in ([[2, -1]], [[3, 5]], [1]))
    try:
        operators = OneDNN(
            cast(Any, torch.ops.mkldnn)._linear_pointwise, cast(Any, torch.ops.mkldnn)._reorder_linear_weight
        )
        results = [
            operators.linear(x, one, bias, activation, [], "none")
            for one in (weight, operators.pack(weight, 1))
            for activation in ("none", "tanh", "gelu")
        ]
    except (AttributeError, RuntimeError, TypeError):
        return None
    expected = [2.0, 0.9640, 1.9545] * 2  # 2 · 3 − 1 · 5 + 1, its tanh and its GELU
    correct = all(abs(float(result) - value) < 1e-2 for result, value in zip(results, expected, strict=True))
    return operators if correct else None


@cache
def multiplies_bfloat16() -> bool:
    """Tell whether PyTorch reports that this processor has instructions for bfloat16 products."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in asked)


class Int8(NamedTuple):
    """Two operators that PyTorch's own compiler uses for quantised models on a CPU, and their range of weights."""

    linear: Callable[..., Tensor]
    """Takes x `(..., i)` in uint8 with scale and zero point, a weight from `pack` with its own, a bias; scale, zero
    point and dtype of the result; name of an activation, its scalars and its algorithm."""
    pack: Callable[[Tensor, list[int]], Tensor]
    """Takes a weight `(o, i)` in int8 and a shape of x."""
    greatest_weight: int
    """The greatest value of a weight: without VNNI pairs of products are added in 16 bits, so weights have 7 bits."""


@cache
def int8_products() -> Int8 | None:
    """Return oneDNN's operators; None if this PyTorch lacks them or they return wrong results."""
    x = torch.arange(32 * 64, device="cpu").remainder(256).view(32, 64)
    weight = (torch.arange(48 * 64, device="cpu") * 7 % 129 - 64).view(48, 64)
    steps, bias = torch.full((48,), 0.5, device="cpu"), torch.arange(48.0, device="cpu")
    try:
        namespace = cast(Any, torch.ops.onednn)
        linear, pack = namespace.qlinear_pointwise, namespace.qlinear_prepack

        def product(x: Tensor, weight: Tensor) -> Tensor:
            packed = pack(weight.to(torch.int8), [32, 64])
            zeros = torch.zeros_like(weight[:, 0])
            result = (1.0, 0, torch.float32, "none", cast("list[float]", []), "none")
            return cast(Tensor, linear(x.to(torch.uint8), 0.25, 3, packed, steps, zeros, bias, *result))

        def is_exact(x: Tensor, weight: Tensor) -> bool:
            return torch.equal(product(x, weight), (x - 3).float() @ weight.float().T * 0.125 + bias)

        if not is_exact(x, weight):
            return None
        full = is_exact(torch.full_like(x, 255), torch.full_like(weight, 127))
    except (AttributeError, RuntimeError, TypeError):
        return None
    return Int8(linear, pack, 127 if full else 64)


def constant_when_compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make the compiler call `method` instead of tracing it, and treat its result as a constant."""
    # Like torch.compiler.assume_constant_result, which would import the whole compiler: two seconds for every user. A
    # compiler that ignores the mark traces the method: slower compilation, same result.
    vars(method)["_dynamo_marked_constant"] = True
    return method


def is_compiled_callable(value: object) -> bool:
    """Tell whether `torch.compile` made this function or bound method."""
    # If PyTorch renamed the mark, copies would keep compiled methods, and tests of copies would fail.
    return hasattr(value, "_torchdynamo_orig_callable")


def tanh_backward(grad: Tensor, output: Tensor) -> Tensor:
    """Return the gradient of tanh's argument, given that of its output, and the output."""
    if operator := _tanh_backward():
        return operator(grad, output)
    return grad * (1 - output * output)


@cache
def _tanh_backward() -> Callable[[Tensor, Tensor], Tensor] | None:
    one = torch.ones(1, device="cpu")
    try:
        operator = cast("Callable[[Tensor, Tensor], Tensor]", torch.ops.aten.tanh_backward)
        result = operator(2 * one, one / 2)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return operator if float(result) == 1.5 else None


def softmax_backward_(grad: Tensor, weights: Tensor) -> None:
    """Replace the gradient of `weights`, a softmax over the last axis, by that of its argument, in place."""
    if operator := _softmax_backward():
        operator(grad, weights, -1, weights.dtype, grad_input=grad)
    else:
        grad.sub_((grad * weights).sum(-1, keepdim=True)).mul_(weights)


@cache
def _softmax_backward() -> Callable[..., Tensor] | None:
    weights, grad = torch.tensor([0.25, 0.75], device="cpu"), torch.tensor([1.0, 0.0], device="cpu")
    try:
        operator = cast("Callable[..., Tensor]", torch.ops.aten._softmax_backward_data)
        operator(grad, weights, -1, weights.dtype, grad_input=grad)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return operator if grad.tolist() == [0.1875, -0.1875] else None


def counted_as_product(x: Tensor, weight: Tensor) -> AbstractContextManager[object]:
    """Let the profiler, which counts operations by operator name, count the code inside as `x weightᵀ`."""
    record = _recorder()
    if record is None or not cast(Any, torch.autograd)._profiler_enabled():
        return nullcontext()
    return cast("AbstractContextManager[object]", record("aten::mm", [x.reshape(-1, x.shape[-1]), weight.mT], {}))


@cache
def _recorder() -> Callable[..., Any] | None:
    """Return the profiler's context manager for a named operator; None, without counting, if PyTorch lacks it."""
    try:
        record = cast(Any, torch._C)._profiler._RecordFunctionFast
        with record("aten::mm", [torch.ones(1, 1, device="cpu")], {}):
            enabled = cast(Any, torch.autograd)._profiler_enabled()
    except (AttributeError, TypeError):
        return None
    return cast("Callable[..., Any]", record) if isinstance(enabled, bool) else None
