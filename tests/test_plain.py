"""Which modules count as constructed: everything that someone may put in their place or hang on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

from hunterFormsBS.kernels.seam import is_plain


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
