"""Linear maps against plain PyTorch; gradients against plain autograd; what training stores, counted in bytes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hunterFormsBS.kernels.linear as linear_module
from hunterFormsBS.kernels import internals
from hunterFormsBS.kernels.linear import ACTIVATIONS, Products, linear, linear_of, pack, product_of_transposes
from hunterFormsBS.operations.norm import rms_norm

SavedBytes: TypeAlias = Callable[[], AbstractContextManager[dict[int, int]]]


def plain_linear_of(cheap: Callable[..., Tensor], inputs: Any, linears: Any) -> tuple[Tensor, ...]:
    hidden = cheap(*inputs)
    return tuple(layer(hidden) for layer in linears)


def gradients_of(function: Callable[..., Any], cheap: Any, inputs: Any, linears: Any) -> list[Tensor | None]:
    outputs = function(cheap, inputs, linears)
    leaves = [*inputs, *(parameter for layer in linears for parameter in layer.parameters())]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    # Different weights for every output and element, as in no symmetric loss.
    loss = sum(
        (out * torch.linspace(-1, 2 + index, out.numel()).view_as(out)).sum() for index, out in enumerate(outputs)
    )
    return list(torch.autograd.grad(loss, wanted))


# linear and product_of_transposes


@pytest.fixture(params=["oneDNN", "MKL"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of PyTorch's libraries computes, whatever this machine's processor would have chosen."""
    operators = internals.onednn()
    if request.param == "oneDNN" and operators is None:
        pytest.skip("this build of PyTorch has no oneDNN")
    products = Products(operators, torch.float32) if operators and request.param == "oneDNN" else None
    monkeypatch.setattr(linear_module, "_products_for", lambda *_: products)
    return str(request.param)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (2, 3, 5), (2, 1, 3, 5)])
@pytest.mark.parametrize("out", [1, 7])
def test_linear_is_that_of_torch(shape: tuple[int, ...], out: int, bias: bool) -> None:
    x, weight, offset = torch.randn(shape), torch.randn(out, 5), torch.randn(out) if bias else None
    torch.testing.assert_close(linear(x, weight, offset), F.linear(x, weight, offset))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("tanh", torch.tanh)])
def test_linear_applies_an_activation(
    activation: Any, function: Callable[[Tensor], Tensor], capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    x, weight, bias = 3 * torch.randn(50, 5), torch.randn(40, 5), torch.randn(40)
    expected = function(F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, weight, bias, activation=activation), expected)


@pytest.mark.usefixtures("library")
def test_linear_takes_views_of_any_order() -> None:
    x, weight = torch.randn(5, 4, 3).transpose(0, 2), torch.randn(5, 6).T
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    assert linear(x, weight).is_contiguous()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("m", "n"), [(3, 8), (8, 3), (4, 4), (1, 5)])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_product_of_transposes(m: int, n: int, capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    x, y = torch.randn(11, m), torch.randn(11, n)
    torch.testing.assert_close(product_of_transposes(x, y), x.T @ y)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("activation", ["none", "gelu", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("library")
def test_packed_weights_give_the_same_for_any_number_of_rows(
    bias: bool, activation: Any, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    x, layer, square = torch.randn(50, 40), nn.Linear(40, 48, bias=bias), nn.Linear(40, 40)
    with torch.no_grad():
        packed = pack([layer, square], x, 50)
        for rows in (x, x[:3], x[:0]):
            torch.testing.assert_close(
                linear(rows, layer.weight, layer.bias, activation=activation, packed=packed.get(layer)),
                linear(rows, layer.weight, layer.bias, activation=activation),
            )
            (out,) = linear_of(None, (rows,), (square,), packed=packed)
            torch.testing.assert_close(out, square(rows))


@pytest.mark.usefixtures("library")
def test_packed_weights_leave_gradients_as_they_are() -> None:
    x, layers = torch.randn(50, 5, requires_grad=True), [nn.Linear(5, 4), nn.Linear(5, 7, bias=False)]
    packed = pack(layers, x, 50)
    with_packed = partial(linear_of, packed=packed)
    torch.testing.assert_close(*(gradients_of(f, F.gelu, (x,), layers) for f in (with_packed, plain_linear_of)))


def test_weights_are_packed_by_layer_where_onednn_serves_and_otherwise_not(library: str) -> None:
    layers = [nn.Linear(5, 4), nn.Linear(5, 4)]
    layers[1].weight = layers[0].weight
    packed = pack(layers, torch.randn(3, 5), 3)
    assert set(packed) == (set(layers) if library == "oneDNN" else set())
    assert not any(weight.requires_grad for weight in packed.values())


@pytest.mark.usefixtures("library")
def test_outputs_of_linear_of_may_be_changed_in_place() -> None:
    x, layer = torch.randn(3, 5, requires_grad=True), nn.Linear(5, 4)
    (out,) = linear_of(F.gelu, (x,), (layer,))
    out.mul_(2).sum().backward()
    expected = x.detach().clone().requires_grad_()
    (2 * layer(F.gelu(expected))).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


@pytest.mark.parametrize("capable", [True, False], ids=["AVX512_BF16", "no bfloat16"])
def test_onednn_is_for_float32_and_for_bfloat16_where_the_processor_has_it(
    capable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(linear_module, "multiplies_bfloat16", lambda: capable)
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    half = torch.bfloat16 if capable else None
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")

    def dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
        products = linear_module._products_for(x, weight)  # pyright: ignore[reportPrivateUsage]
        return None if products is None else products.dtype

    assert dtype(x, weight) == torch.float32
    assert dtype(x.bfloat16(), weight.bfloat16()) == half
    assert dtype(x.double(), weight.double()) is None
    assert dtype(x.half(), weight.half()) is None
    assert dtype(x.bfloat16(), weight) is None
    assert dtype(x[:0], weight) is None
    assert dtype(x.to("meta"), weight.to("meta")) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert dtype(x, weight) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert dtype(x, weight) == dtype(x.bfloat16(), weight) == dtype(x.bfloat16(), weight.bfloat16()) == half
        assert dtype(x.double(), weight) is None
    with torch.autocast("cpu", torch.float16):
        assert dtype(x, weight) is None
    with FakeTensorMode() as mode:
        assert dtype(mode.from_tensor(x), mode.from_tensor(weight)) is None
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert dtype(x, weight) is None


@pytest.mark.skipif(not internals.multiplies_bfloat16(), reason="this processor does not multiply bfloat16")
@pytest.mark.parametrize("activation", ["none", "gelu", "tanh"])
@pytest.mark.parametrize("autocast", [True, False])
def test_products_in_bfloat16_are_those_of_torch_rounded_once(activation: Any, autocast: bool) -> None:
    layer, x = nn.Linear(64, 48), torch.randn(30, 64)
    expected = ACTIVATIONS[activation](layer(x))
    if not autocast:
        layer, x = layer.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        out = linear(x, layer.weight, layer.bias, activation=activation)
        packed = pack([layer], x, len(x))
        again = linear(x, layer.weight, layer.bias, activation=activation, packed=packed[layer])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(again, out)


def zeros(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return torch.zeros(len(x), len(weight))


@pytest.mark.parametrize(
    "operators",
    [
        SimpleNamespace(),
        SimpleNamespace(_linear_pointwise=zeros),
        SimpleNamespace(
            _linear_pointwise=lambda x, weight: x @ weight, _reorder_linear_weight=lambda weight, _rows: weight
        ),
        SimpleNamespace(_linear_pointwise=zeros, _reorder_linear_weight=lambda weight, _rows: weight),
    ],
    ids=["missing", "one missing", "other arguments", "other results"],
)
def test_onednn_is_not_needed(operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = torch.randn(3, 5), nn.Linear(5, 4)
    internals.onednn.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops, "mkldnn", operators)
        packed = pack([layer], x, 3)
        actual = linear(x, layer.weight, layer.bias, activation="tanh")
    internals.onednn.cache_clear()
    assert not packed
    assert torch.equal(actual, layer(x).tanh())


def test_bfloat16_is_left_to_pytorch_where_onednn_may_not_use_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    def reorder(weight: Tensor, rows: int) -> Tensor:
        """Do what oneDNN does with ONEDNN_MAX_CPU_ISA=AVX2 on a processor that could do more."""
        if weight.dtype != torch.float32:
            raise RuntimeError("bf16 path needs the cpu support avx_ne_convert")
        return weight

    x, layer = torch.randn(3, 5, dtype=torch.bfloat16), nn.Linear(5, 4, dtype=torch.bfloat16)
    internals.onednn.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(linear_module, "multiplies_bfloat16", lambda: True)
        operators = SimpleNamespace(
            _linear_pointwise=torch.ops.mkldnn._linear_pointwise, _reorder_linear_weight=reorder
        )
        patch.setattr(torch.ops, "mkldnn", operators)
        packed = pack([layer], x, 3)
        actual = linear(x, layer.weight, layer.bias)
    internals.onednn.cache_clear()
    assert not packed
    assert torch.equal(actual, layer(x))


# linear_of

cheap_functions = pytest.mark.parametrize(
    ("cheap", "extra_shapes"), [(F.gelu, []), (rms_norm, [(5,)])], ids=["gelu", "rms_norm"]
)


@cheap_functions
def test_linear_of_gives_the_outputs_of_the_plain_composition(cheap: Any, extra_shapes: Any, library: str) -> None:
    inputs = (torch.randn(2, 3, 5), *(torch.randn(shape) for shape in extra_shapes))
    linears = [nn.Linear(5, 4), nn.Linear(5, 7, bias=False)]
    for actual, expected in zip(
        linear_of(cheap, inputs, linears), plain_linear_of(cheap, inputs, linears), strict=True
    ):
        torch.testing.assert_close(actual, expected)
        assert library == "oneDNN" or torch.equal(actual, expected)


@cheap_functions
@pytest.mark.parametrize("frozen", [(), ("x",), ("extra",), ("weight",), ("bias",), ("x", "extra"), ("weight", "bias")])
def test_linear_of_gives_the_gradients_of_plain_autograd(cheap: Any, extra_shapes: Any, frozen: Any) -> None:
    x = torch.randn(2, 3, 5, requires_grad="x" not in frozen)
    extras = [torch.randn(shape, requires_grad="extra" not in frozen) for shape in extra_shapes]
    linears = [nn.Linear(5, 4), nn.Linear(5, 7, bias=False), nn.Linear(5, 1)]
    for layer in linears:
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name not in frozen)
    arguments = (cheap, (x, *extras), linears)
    torch.testing.assert_close(gradients_of(linear_of, *arguments), gradients_of(plain_linear_of, *arguments))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("bias",)])
def test_linear_of_differentiates_a_tanh_that_follows(frozen: tuple[str, ...]) -> None:
    x = torch.randn(2, 3, 5, requires_grad="x" not in frozen)
    linears = [nn.Linear(5, 4), nn.Linear(5, 7, bias=False)]
    for layer in linears:
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name not in frozen)

    def plainly(_cheap: Any, inputs: Any, linears: Any) -> tuple[Tensor, ...]:
        return tuple(layer(inputs[0]).tanh() for layer in linears)

    fused = partial(linear_of, activation="tanh")
    torch.testing.assert_close(*(gradients_of(f, None, (x,), linears) for f in (fused, plainly)))


@cheap_functions
def test_linear_of_gives_the_gradients_of_finite_differences(cheap: Any, extra_shapes: Any) -> None:
    shapes = [(2, 3, 5), *extra_shapes, (4, 5), (4,), (2, 5), (2,)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        linears = [nn.Linear(5, 4, device="meta"), nn.Linear(5, 2, device="meta")]
        for layer, weight, bias in zip(linears, leaves[-4::2], leaves[-3::2], strict=True):
            del layer.weight, layer.bias
            layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
        return linear_of(cheap, leaves[:-4], linears)

    assert torch.autograd.gradcheck(function, tensors)


def test_gradient_of_weights_is_made_of_rows_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gaps oneDNN takes hundreds of times as long: a band of tokens has them, and so may gradients."""
    factors: list[Tensor] = []

    def spy(x: Tensor, y: Tensor) -> Tensor:
        factors.extend((x, y))
        return product_of_transposes(x, y)

    monkeypatch.setattr(linear_module, "product_of_transposes", spy)
    tokens = torch.randn(1, 7, 3, 4, requires_grad=True)
    layer = nn.Linear(4, 5)
    (out,) = linear_of(None, (tokens[:, :, 1],), (layer,))
    out.backward(torch.randn(1, 7, 2, 5)[:, :, 1])  # type: ignore[no-untyped-call]
    assert len(factors) == 2
    assert all(factor.is_contiguous() for factor in factors)


def test_output_that_is_not_used_does_not_disturb_the_gradient() -> None:
    x, linears = torch.randn(3, 5, requires_grad=True), [nn.Linear(5, 4), nn.Linear(5, 7)]
    grads = [
        torch.autograd.grad(function(F.gelu, (x,), linears)[1].square().sum(), x)[0]
        for function in (linear_of, plain_linear_of)
    ]
    torch.testing.assert_close(*grads)


def test_linear_of_stores_its_inputs_and_nothing_else(bytes_saved_for_backward: SavedBytes) -> None:
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


def test_without_gradients_nothing_is_stored(bytes_saved_for_backward: SavedBytes) -> None:
    x, linear = torch.randn(3, 5, requires_grad=True), nn.Linear(5, 4)
    with torch.no_grad(), bytes_saved_for_backward() as saved:
        (out,) = linear_of(F.gelu, (x,), (linear,))
    assert not out.requires_grad
    assert not saved


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


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("cheap", "activation", "extra_shapes"),
    [(F.gelu, "none", []), (rms_norm, "none", [(5,)]), (None, "none", []), (None, "tanh", [])],
    ids=["gelu", "rms_norm", "nothing", "tanh after"],
)
def test_second_derivatives_are_those_of_plain_autograd(cheap: Any, activation: Any, extra_shapes: Any) -> None:
    inputs = [torch.randn(shape, requires_grad=True) for shape in [(2, 3, 5), *extra_shapes]]
    linears = [nn.Linear(5, 4), nn.Linear(5, 7, bias=False)]
    leaves = [*inputs, *(parameter for layer in linears for parameter in layer.parameters())]

    def plainly(*_: Any) -> tuple[Tensor, ...]:
        hidden = inputs[0] if cheap is None else cheap(*inputs)
        return tuple(ACTIVATIONS[activation](layer(hidden)) for layer in linears)

    results = []
    for function in (partial(linear_of, activation=activation), plainly):
        loss = sum(out.square().sum() for out in function(cheap, inputs, linears))
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        results.append((grads, torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_second_derivatives_are_those_of_finite_differences() -> None:
    x, gamma = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(2, 3), (3,)])
    layer = nn.Linear(3, 2).double()
    assert torch.autograd.gradgradcheck(lambda *inputs: linear_of(rms_norm, inputs, (layer,)), (x, gamma))


def test_frozen_tensors_may_be_left_out_of_second_derivatives() -> None:
    x, layer = torch.randn(3, 5, requires_grad=True), nn.Linear(5, 4).requires_grad_(False)
    (out,) = linear_of(F.gelu, (x,), (layer,))
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    grad.sum().backward()
    expected = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(layer(F.gelu(expected)).square().sum(), expected, create_graph=True)
    grad.sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)
