"""The seam: which layers count as made by their class, and which of method and kernels takes a call."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

from hunterFormsBS.attend import Attention
from hunterFormsBS.kernels.seam import (
    KERNELS,
    Kernel,
    Layer,
    Where,
    is_unmodified,
    kernel,
    know,
    reference,
    repeatable,
    served_by,
)
from hunterFormsBS.theTypes import ParametersAttention

# Layers as their classes made them


class Inner(nn.Linear):
    """A linear layer of another library."""


class Pair(Layer):
    """Two linear layers, the second one within a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.more = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.more(self.first(x))
        return out


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


def of_another_kind(_linear: nn.Linear) -> nn.Module:
    return nn.Identity()


each_change = pytest.mark.parametrize(
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


@pytest.mark.parametrize("bias", [True, False])
def test_untouched_module_is_unmodified(bias: bool) -> None:
    assert is_unmodified(nn.Linear(3, 4, bias=bias))


@each_change
def test_whatever_someone_put_in_place_of_a_module_is_not_unmodified(change: Callable[[nn.Linear], nn.Module]) -> None:
    assert not is_unmodified(change(nn.Linear(3, 4)))


@pytest.fixture(
    params=[Pair, lambda: Attention(6, ParametersAttention(heads=2, dim_head=4))], ids=["Pair", "Attention"]
)
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Layer:
    monkeypatch.setattr(Layer, "methods", dict(Layer.methods))
    know(Pair)
    made: Layer = request.param()
    return made


def linears(layer: nn.Module) -> list[str]:
    return [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]


def test_untouched_layer_is_unmodified_inside_and_out(layer: Layer) -> None:
    assert layer.is_unmodified_inside()
    assert layer.is_unmodified()


@pytest.mark.parametrize(
    "change", [with_forward_hook, with_patched_forward, with_tensor_subclass, of_another_kind, with_subclass]
)
def test_change_of_any_module_inside_modifies_the_layer(change: Callable[[nn.Linear], nn.Module], layer: Layer) -> None:
    for name in linears(layer):
        changed = copy.deepcopy(layer)
        inside = changed.get_submodule(name)
        assert isinstance(inside, nn.Linear)
        changed.set_submodule(name, change(inside))
        assert not changed.is_unmodified_inside(), name
        assert not changed.is_unmodified(), name


@each_change
def test_change_of_a_module_inside_modifies_the_layer(change: Callable[[nn.Linear], nn.Module], layer: Layer) -> None:
    name = linears(layer)[-1]
    inside = layer.get_submodule(name)
    assert isinstance(inside, nn.Linear)
    layer.set_submodule(name, change(inside))
    assert not layer.is_unmodified_inside()


def test_modules_added_and_taken_out_modify_the_layer() -> None:
    for change in (lambda pair: pair.more.append(nn.Tanh()), lambda pair: pair.more.pop(1)):
        pair = Pair()
        change(pair)
        assert not pair.is_unmodified_inside()


def test_layer_that_is_hooked_itself_is_unmodified_inside_only(layer: Layer) -> None:
    layer.register_forward_hook(lambda *_: None)
    assert layer.is_unmodified_inside()
    assert not layer.is_unmodified()


def test_layer_whose_hook_was_removed_is_unmodified_again(layer: Layer) -> None:
    layer.get_submodule(linears(layer)[0]).register_forward_hook(lambda *_: None).remove()
    assert layer.is_unmodified()


def test_no_layer_is_unmodified_while_hooks_for_all_modules_are_registered(layer: Layer) -> None:
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert not layer.is_unmodified_inside()
    finally:
        handle.remove()
    assert layer.is_unmodified_inside()


def test_subclass_of_a_layer_is_not_the_layer(layer: Layer) -> None:
    kind = type(layer)
    layer.__class__ = type("Subclass", (kind,), {"forward": lambda _self, x: x})
    assert not layer.is_unmodified()


def test_patched_class_is_found(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Linear, "forward", lambda _self, x: x)
    assert not layer.is_unmodified_inside()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("change", [None, of_another_kind])
def test_copies_are_as_unmodified_as_their_originals(copied: Any, change: Any, layer: Layer) -> None:
    if change is not None:
        layer.set_submodule(linears(layer)[0], change(None))
    assert copied(layer).is_unmodified_inside() is (change is None)


@pytest.mark.parametrize(
    "change",
    [lambda layer: layer.double(), lambda layer: layer.to("meta"), lambda layer: layer.eval().requires_grad_(False)],
)
def test_casting_moving_and_freezing_do_not_modify_a_layer(change: Any, layer: Layer) -> None:
    assert change(layer).is_unmodified()


def test_classes_of_other_libraries_can_be_made_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layer, "methods", dict(Layer.methods))
    assert not is_unmodified(Inner(3, 3))
    know(Inner)
    assert is_unmodified(Inner(3, 3))
    Inner.forward = lambda _self, x: x  # type: ignore[method-assign]
    try:
        assert not is_unmodified(Inner(3, 3))
    finally:
        del Inner.forward


def test_compiled_methods_are_left_out_of_copies() -> None:
    pair = Pair()
    pair.forward = torch.compile(pair.forward, backend="eager")  # type: ignore[method-assign]
    assert not is_unmodified(pair)
    assert "forward" not in vars(copy.deepcopy(pair))


# Kernels


@pytest.fixture(autouse=True)
def _kernels_as_before() -> Iterator[None]:
    before = dict(KERNELS)
    yield
    KERNELS.clear()
    KERNELS.update(before)


def named(name: str, where: Where, *, ordinary: bool = False, declines: bool = False) -> Kernel:
    def run(x: Tensor, y: str = "") -> str | None:
        return None if declines else name + y

    run.__name__ = name
    return kernel(where, ordinary=ordinary)(run)


def served(*kernels: Kernel) -> Callable[..., str]:
    @served_by(*kernels)
    def method(x: Tensor, y: str = "") -> str:
        """Return the word for it."""
        return "method" + y

    return method


def test_first_kernel_that_does_not_decline_takes_the_call() -> None:
    declining, first, second = named("none", Where.CPU, declines=True), named("a", Where.CPU), named("b", Where.CPU)
    assert served(declining, first, second)(torch.ones(1)) == "a"
    assert served(declining)(torch.ones(1)) == "method"
    assert served()(torch.ones(1)) == "method"


@pytest.mark.parametrize("call", [lambda f: f(torch.ones(1), "!"), lambda f: f(x=torch.ones(1), y="!")])
def test_kernels_and_methods_get_the_arguments(call: Callable[[Callable[..., str]], str]) -> None:
    assert call(served(named("a", Where.CPU))) == "a!"
    assert call(served()) == "method!"


def test_method_keeps_its_name_and_its_words() -> None:
    method = served(named("a", Where.CPU))
    assert method.__name__ == "method"
    assert method.__doc__ == "Return the word for it."


def test_kernels_run_where_they_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    method = served(named("cpu", Where.CPU), named("device", Where.DEVICE), named("graph", Where.GRAPH))
    assert method(torch.ones(1)) == "cpu"
    assert method(torch.ones(1, device="meta")) == "device"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert method(torch.ones(1)) == method(torch.ones(1, device="meta")) == "graph"


def test_no_kernel_runs_within_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    method = served(named("a", Where.EVERYWHERE, ordinary=True))
    with reference():
        assert method(torch.ones(1)) == "method"
        with reference():
            pass
        assert method(torch.ones(1)) == "method"
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            assert method(torch.ones(1)) == "method"
    assert method(torch.ones(1)) == "a"
    with pytest.raises(ZeroDivisionError), reference():
        raise ZeroDivisionError
    assert method(torch.ones(1)) == "a"


@pytest.mark.process
@pytest.mark.parametrize(("value", "expected"), [("1", "True"), ("0", "False"), ("", "False"), (None, "False")])
def test_environment_can_turn_kernels_off_from_the_start(value: str | None, expected: str) -> None:
    program = "from hunterFormsBS.kernels.seam import surroundings; print(surroundings().off)"
    environment = {name: value for name, value in os.environ.items() if name != "HUNTERFORMSBS_REFERENCE"}
    if value is not None:
        environment["HUNTERFORMSBS_REFERENCE"] = value
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_what_is_repeated_takes_the_kernels_of_the_first_time() -> None:
    method = served(named("a", Where.CPU))
    with reference():
        by_formula = repeatable(method)
    by_kernel = repeatable(method)
    assert by_formula(torch.ones(1)) == "method"
    with reference():
        assert by_kernel(torch.ones(1)) == "a"
        assert method(torch.ones(1)) == "method"
    assert method(torch.ones(1)) == "a"


def test_only_ordinary_kernels_take_tensor_subclasses() -> None:
    method = served(named("private", Where.CPU), named("ordinary", Where.CPU, ordinary=True))
    assert method(torch.ones(1)) == "private"
    assert method(torch.ones(1).as_subclass(TensorSubclass)) == "ordinary"


def test_what_a_kernel_prepared_reaches_kernels_and_no_method() -> None:
    @kernel(Where.CPU)
    def prepared_one(x: Tensor, *, prepared: str = "nothing") -> str | None:
        return prepared if prepared != "no" else None

    @served_by(prepared_one)
    def method(x: Tensor) -> str:
        return "method"

    assert method(torch.ones(1)) == "nothing"
    assert method(torch.ones(1), prepared="something") == "something"  # type: ignore[call-arg]
    assert method(torch.ones(1), prepared="no") == "method"  # type: ignore[call-arg]


def test_two_kernels_of_one_name_are_refused() -> None:
    named("a", Where.CPU)
    with pytest.raises(ValueError, match="two kernels named a"):
        named("a", Where.CPU)
