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

import hunterFormsBS.kernels.linear as linear_module
from hunterFormsBS.blocks.norm import rms_norm
from hunterFormsBS.kernels.linear import can_bypass, linear, linear_of, packing_weights, product_of_transposes, through

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
    operator = linear_module._onednn_operator()  # pyright: ignore[reportPrivateUsage]
    if request.param == "oneDNN" and operator is None:
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(linear_module, "_onednn_for", lambda *_: operator if request.param == "oneDNN" else None)
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


@pytest.mark.usefixtures("library")
def test_packed_weights_give_the_same_and_are_packed_once_a_scope() -> None:
    x, weight, bias = torch.randn(50, 40), torch.randn(48, 40), torch.randn(48)
    square = torch.randn(40, 40)
    expected = [linear(rows, weight, bias) for rows in (x, x[:3])]
    with packing_weights():
        for _ in range(2):
            torch.testing.assert_close([linear(rows, weight, bias) for rows in (x, x[:3])], expected)
        # The same memory, read in another order, is another weight.
        torch.testing.assert_close([linear(x, square), linear(x, square.T)], [x @ square.T, x @ square])
    weight.zero_()
    assert torch.equal(linear(x, weight), torch.zeros(50, 48))
    with packing_weights():
        assert torch.equal(linear(x, weight), torch.zeros(50, 48))


def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if linear_module._onednn_for(torch.ones(1, 1), torch.ones(1, 1)) is None:  # pyright: ignore[reportPrivateUsage]
        pytest.skip("this machine does not use oneDNN")
    packed: list[Tensor] = []
    pack = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda w, n: packed.append(w) or pack(w, n))
    layers = [nn.Linear(5, 4), nn.Linear(5, 4)]
    with packing_weights():
        for _ in range(3):
            linear_of(F.gelu, (torch.randn(3, 5),), layers)
    assert [t.data_ptr() for t in packed] == [layer.weight.data_ptr() for layer in layers]
    linear_of(F.gelu, (torch.randn(3, 5),), layers)
    assert len(packed) == 2


@pytest.mark.usefixtures("library")
def test_outputs_of_linear_of_may_be_changed_in_place() -> None:
    x, layer = torch.randn(3, 5, requires_grad=True), nn.Linear(5, 4)
    (out,) = linear_of(F.gelu, (x,), (layer,))
    out.mul_(2).sum().backward()
    expected = x.detach().clone().requires_grad_()
    (2 * layer(F.gelu(expected))).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


def test_onednn_is_for_float32_eager_and_without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    fits = linear_module._onednn_for  # pyright: ignore[reportPrivateUsage]
    assert fits(x, weight) is not None
    assert fits(x.double(), weight.double()) is None
    assert fits(x.bfloat16(), weight) is None
    assert fits(x[:0], weight) is None
    assert fits(x.to("meta"), weight.to("meta")) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert fits(x, weight) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert fits(x, weight) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert fits(x, weight) is None
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert fits(x, weight) is None


@pytest.mark.parametrize(
    "operators", [SimpleNamespace(), SimpleNamespace(_linear_pointwise=lambda x, weight: x @ weight)]
)
def test_onednn_is_not_needed(operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4)
    linear_module._onednn_operator.cache_clear()  # pyright: ignore[reportPrivateUsage]
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops, "mkldnn", operators)
        actual = linear(x, weight, bias, activation="tanh")
    linear_module._onednn_operator.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert torch.equal(actual, F.linear(x, weight, bias).tanh())


# through


def nested() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6, bias=False)), nn.GLU())


@pytest.mark.usefixtures("library")
def test_through_gives_the_output_of_a_call() -> None:
    net, x = nested(), torch.randn(3, 5)
    with torch.no_grad():
        torch.testing.assert_close(through(net, x), net(x))


@pytest.mark.usefixtures("library")
def test_through_gives_the_gradients_of_a_call() -> None:
    net, x = nested(), torch.randn(2, 3, 5, requires_grad=True)
    leaves = [x, *net.parameters()]
    actual, expected = (torch.autograd.grad(f(x).square().sum(), leaves) for f in (partial(through, net), net))
    torch.testing.assert_close(actual, expected)


def test_through_does_not_call_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nested(), torch.randn(3, 5)
    for layer in (nn.Linear, nn.Tanh):
        monkeypatch.setattr(layer, "forward", lambda *_: pytest.fail("a plain layer was called"))
    assert through(net, x).requires_grad
    with torch.no_grad():
        assert not through(net, x).requires_grad


def test_through_stores_no_more_than_a_call(bytes_saved_for_backward: SavedBytes) -> None:
    net, x = nested(), torch.randn(30, 5)
    with bytes_saved_for_backward() as saved:
        mine = through(net, x)
    with bytes_saved_for_backward() as saved_by_autograd:
        plain = net(x)
    assert mine.requires_grad
    assert plain.requires_grad
    parameters = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    mine_alone, plain_alone = ({k: v for k, v in s.items() if k not in parameters} for s in (saved, saved_by_autograd))
    assert sum(mine_alone.values()) <= sum(plain_alone.values())


@pytest.mark.parametrize("path", ["", "0", "0.0", "0.1", "0.2", "1"])
def test_through_calls_whatever_has_a_hook(path: str) -> None:
    net, seen = nested(), []
    net.get_submodule(path).register_forward_hook(lambda module, *_: seen.append(module))
    through(net, torch.randn(3, 5))
    assert seen == [net.get_submodule(path)]


def test_through_calls_whatever_took_the_place_of_a_layer() -> None:
    net = nested()
    net[0][2] = nn.Sequential(net[0][2], nn.Threshold(1e9, 3.0))  # type: ignore[index, operator]
    torch.testing.assert_close(through(net, torch.randn(2, 5)), F.glu(torch.full((2, 6), 3.0)))


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


def test_only_plain_modules_are_bypassed_and_none_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = ((nn.Linear(5, 4), nn.Linear), (nn.GELU(), nn.GELU))
    assert can_bypass(*modules)
    with torch.no_grad():
        assert can_bypass(*modules)
    assert not can_bypass(*modules, (nn.GELU(), nn.ReLU))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not can_bypass(*modules)


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
