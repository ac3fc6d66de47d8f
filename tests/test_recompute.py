"""What training stores: gradients against plain autograd, and a count of the bytes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

from hunterFormsBS.norm import rms_norm
from hunterFormsBS.recompute import can_recompute, checkpointed, is_plain, linear_of


@contextmanager
def bytes_saved_for_backward() -> Iterator[dict[int, int]]:
    """Collect the sizes of the distinct memories that autograd keeps."""
    saved: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # so that no address is used twice
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def plain_linear_of(cheap: Callable[..., Tensor], inputs: Any, linears: Any) -> tuple[Tensor, ...]:
    hidden = cheap(*inputs)
    return tuple(linear(hidden) for linear in linears)


def gradients_of(function: Callable[..., Any], cheap: Any, inputs: Any, linears: Any) -> list[Tensor | None]:
    outputs = function(cheap, inputs, linears)
    leaves = [*inputs, *(parameter for linear in linears for parameter in linear.parameters())]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    # Different weights for every output and element, as in no symmetric loss.
    loss = sum(
        (out * torch.linspace(-1, 2 + index, out.numel()).view_as(out)).sum() for index, out in enumerate(outputs)
    )
    return list(torch.autograd.grad(loss, wanted))


# is_plain


class SubclassOfLinear(nn.Linear):
    pass


class TensorSubclass(Tensor):
    pass


def with_forward_hook(linear: nn.Linear) -> nn.Module:
    linear.register_forward_hook(lambda *_: None)
    return linear


def with_forward_pre_hook(linear: nn.Linear) -> nn.Module:
    linear.register_forward_pre_hook(lambda *_: None)
    return linear


def with_backward_hook(linear: nn.Linear) -> nn.Module:
    linear.register_full_backward_hook(lambda *_: None)
    return linear


def with_backward_pre_hook(linear: nn.Linear) -> nn.Module:
    linear.register_full_backward_pre_hook(lambda *_: None)
    return linear


def with_patched_forward(linear: nn.Linear) -> nn.Module:
    linear.forward = lambda x: x  # type: ignore[method-assign]
    return linear


def with_weight_norm(linear: nn.Linear) -> nn.Module:
    return parametrizations.weight_norm(linear)


def with_tensor_subclass(linear: nn.Linear) -> nn.Module:
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(TensorSubclass))
    return linear


def with_subclass(linear: nn.Linear) -> nn.Module:
    return SubclassOfLinear(linear.in_features, linear.out_features)


@pytest.mark.parametrize("bias", [True, False])
def test_untouched_layer_is_plain(bias: bool) -> None:
    assert is_plain(nn.Linear(3, 4, bias=bias), nn.Linear)


@pytest.mark.parametrize(
    "change",
    [
        with_forward_hook,
        with_forward_pre_hook,
        with_backward_hook,
        with_backward_pre_hook,
        with_patched_forward,
        with_weight_norm,
        with_tensor_subclass,
        with_subclass,
    ],
)
def test_whatever_someone_put_in_place_of_a_layer_is_not_plain(change: Callable[[nn.Linear], nn.Module]) -> None:
    assert not is_plain(change(nn.Linear(3, 4)), nn.Linear)


def test_layer_of_another_kind_is_not_plain() -> None:
    assert not is_plain(nn.Identity(), nn.Linear)


def test_layer_whose_hook_was_removed_is_plain_again() -> None:
    linear = nn.Linear(3, 4)
    linear.register_forward_hook(lambda *_: None).remove()
    assert is_plain(linear, nn.Linear)


def test_no_layer_is_plain_while_hooks_for_all_modules_are_registered() -> None:
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert not is_plain(nn.Linear(3, 4), nn.Linear)
    finally:
        handle.remove()
    assert is_plain(nn.Linear(3, 4), nn.Linear)


# linear_of

cheap_functions = pytest.mark.parametrize(
    ("cheap", "extra_shapes"), [(F.gelu, []), (rms_norm, [(5,)])], ids=["gelu", "rms_norm"]
)


@cheap_functions
def test_linear_of_gives_the_outputs_of_the_plain_composition(cheap: Any, extra_shapes: Any) -> None:
    inputs = (torch.randn(2, 3, 5), *(torch.randn(shape) for shape in extra_shapes))
    linears = [nn.Linear(5, 4), nn.Linear(5, 7, bias=False)]
    for actual, expected in zip(
        linear_of(cheap, inputs, linears), plain_linear_of(cheap, inputs, linears), strict=True
    ):
        assert torch.equal(actual, expected)


@cheap_functions
@pytest.mark.parametrize("frozen", [(), ("x",), ("extra",), ("weight",), ("bias",), ("x", "extra"), ("weight", "bias")])
def test_linear_of_gives_the_gradients_of_plain_autograd(cheap: Any, extra_shapes: Any, frozen: Any) -> None:
    x = torch.randn(2, 3, 5, requires_grad="x" not in frozen)
    extras = [torch.randn(shape, requires_grad="extra" not in frozen) for shape in extra_shapes]
    linears = [nn.Linear(5, 4), nn.Linear(5, 7, bias=False), nn.Linear(5, 1)]
    for linear in linears:
        for name, parameter in linear.named_parameters():
            parameter.requires_grad_(name not in frozen)
    arguments = (cheap, (x, *extras), linears)
    torch.testing.assert_close(gradients_of(linear_of, *arguments), gradients_of(plain_linear_of, *arguments))


@cheap_functions
def test_linear_of_gives_the_gradients_of_finite_differences(cheap: Any, extra_shapes: Any) -> None:
    shapes = [(2, 3, 5), *extra_shapes, (4, 5), (4,), (2, 5), (2,)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        linears = [nn.Linear(5, 4, device="meta"), nn.Linear(5, 2, device="meta")]
        for linear, weight, bias in zip(linears, leaves[-4::2], leaves[-3::2], strict=True):
            del linear.weight, linear.bias
            linear.weight, linear.bias = weight, bias  # type: ignore[assignment]
        return linear_of(cheap, leaves[:-4], linears)

    assert torch.autograd.gradcheck(function, tensors)


def test_output_that_is_not_used_does_not_disturb_the_gradient() -> None:
    x, linears = torch.randn(3, 5, requires_grad=True), [nn.Linear(5, 4), nn.Linear(5, 7)]
    grads = [
        torch.autograd.grad(function(F.gelu, (x,), linears)[1].square().sum(), x)[0]
        for function in (linear_of, plain_linear_of)
    ]
    torch.testing.assert_close(*grads)


def test_linear_of_stores_its_inputs_and_nothing_else() -> None:
    x, linear = torch.randn(4, 100, 8, requires_grad=True), nn.Linear(8, 32)
    contract = nn.Linear(32, 8)
    with bytes_saved_for_backward() as saved:
        (hidden,) = linear_of(F.gelu, (x,), (linear,))
        (out,) = linear_of(F.gelu, (hidden,), (contract,))
    parameters = {*linear.parameters(), *contract.parameters()}
    expected = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (x, hidden, *parameters)}
    assert saved == expected
    with bytes_saved_for_backward() as saved_by_autograd:
        plain_linear_of(F.gelu, plain_linear_of(F.gelu, (x,), (linear,)), (contract,))
    assert sum(saved.values()) < 0.6 * sum(saved_by_autograd.values())
    assert out.requires_grad


def test_result_of_the_cheap_function_does_not_outlive_the_call() -> None:
    hidden: list[weakref.ref[Tensor]] = []

    def cheap(x: Tensor) -> Tensor:
        out = F.gelu(x)
        hidden.append(weakref.ref(out))
        return out

    (out,) = linear_of(cheap, (torch.randn(3, 5, requires_grad=True),), (nn.Linear(5, 4),))
    gc.collect()
    assert out.requires_grad
    assert [ref() for ref in hidden] == [None]


def test_without_gradients_nothing_is_stored() -> None:
    x, linear = torch.randn(3, 5, requires_grad=True), nn.Linear(5, 4)
    with torch.no_grad(), bytes_saved_for_backward() as saved:
        (out,) = linear_of(F.gelu, (x,), (linear,))
    assert not out.requires_grad
    assert not saved


def test_a_compiler_and_inference_get_the_plain_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = ((nn.Linear(5, 4), nn.Linear), (nn.GELU(), nn.GELU))
    assert can_recompute(*modules)
    with torch.no_grad():
        assert not can_recompute(*modules)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not can_recompute(*modules)


@cheap_functions
def test_under_autocast_outputs_are_narrow_and_gradients_have_the_dtype_of_their_tensors(
    cheap: Any, extra_shapes: Any
) -> None:
    inputs = [torch.randn(shape, requires_grad=True) for shape in [(2, 3, 5), *extra_shapes]]
    linears = [nn.Linear(5, 4), nn.Linear(5, 7, bias=False)]
    expected = gradients_of(plain_linear_of, cheap, inputs, linears)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = linear_of(cheap, inputs, linears)
        actual = gradients_of(linear_of, cheap, inputs, linears)
    assert {out.dtype for out in outputs} == {torch.bfloat16}
    assert {grad.dtype for grad in actual if grad is not None} == {torch.float32}
    for mine, exact in zip(actual, expected, strict=True):
        assert mine is not None
        assert exact is not None
        assert (mine - exact).norm() < 0.02 * exact.norm()


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    x, linear = torch.randn(3, 5, requires_grad=True), nn.Linear(5, 4)
    (out,) = linear_of(F.gelu, (x,), (linear,))
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# checkpointed


def counting(calls: list[str]) -> Callable[..., Tensor]:
    def function(x: Tensor, weight: Tensor, *, power: int = 1) -> Tensor:
        calls.append("call")
        return F.dropout(torch.tanh(x @ weight), 0.5).pow(power)

    return function


def test_checkpointed_runs_again_in_the_backward_pass_with_the_same_random_numbers() -> None:
    calls: list[str] = []
    function = counting(calls)
    x, weight = torch.randn(6, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)
    results: list[tuple[Tensor, ...]] = []
    for run in (function, checkpointed(function)):
        torch.manual_seed(3)
        out = run(x, weight, power=3)
        results.append((out, *torch.autograd.grad(out.sum(), (x, weight))))
    assert len(calls) == 1 + 2
    assert all(map(torch.equal, *results))


def test_checkpointed_stores_its_arguments_only() -> None:
    x, weight = torch.randn(60, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)
    with bytes_saved_for_backward() as saved:
        checkpointed(counting([]))(x, weight)
    # What the checkpoint keeps it keeps in closures; nothing of the function's inside is saved.
    assert not set(saved) - {x.untyped_storage().data_ptr(), weight.untyped_storage().data_ptr()}
    with bytes_saved_for_backward() as saved_by_autograd:
        counting([])(x, weight)
    assert len(saved_by_autograd) > 2


def test_checkpointed_runs_once_and_plainly_without_gradients() -> None:
    calls: list[str] = []
    with torch.no_grad():
        out = checkpointed(counting(calls))(torch.randn(6, 6), torch.randn(6, 6, requires_grad=True))
    assert len(calls) == 1
    assert not out.requires_grad
