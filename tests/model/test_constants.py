"""Index tensors that never change: right on every device and in every mode, and in nobody's way."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hunterFormsBS.bandSplit import BandSplit
from hunterFormsBS.kernels.constants import Constants

CPU = torch.device("cpu")


def constants() -> Constants:
    return Constants(order=[2, 0, 1], rank=[1, 2, 0])


def test_constants_are_whole_numbers_by_name() -> None:
    for name, expected in (("order", [2, 0, 1]), ("rank", [1, 2, 0])):
        tensor = constants().on(CPU, name)
        assert tensor.tolist() == expected
        assert tensor.dtype == torch.int64
        assert not tensor.requires_grad


def test_constants_are_made_once_for_each_device() -> None:
    some = constants()
    first = some.on(CPU, "order")
    assert some.on(torch.device("meta"), "order").device.type == "meta"
    assert some.on(CPU, "order") is first


def test_constants_made_in_inference_mode_serve_training() -> None:
    some, x = constants(), torch.randn(3, requires_grad=True)
    with torch.inference_mode():
        some.on(CPU, "order")
    x.index_select(0, some.on(CPU, "order"))[0].backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 1]


def test_constants_made_while_tensors_are_fake_are_not_kept() -> None:
    some = constants()
    with FakeTensorMode():
        assert isinstance(some.on(CPU, "order"), FakeTensor)
    assert some.on(CPU, "order").tolist() == [2, 0, 1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda some: pickle.loads(pickle.dumps(some))])
def test_copies_have_the_same_values(copied: object) -> None:
    some = constants()
    some.on(torch.device("meta"), "order")
    assert copied(some).on(CPU, "order").tolist() == [2, 0, 1]  # type: ignore[operator]


def test_layer_with_constants_has_neither_buffers_nor_state_of_them_and_survives_to_empty() -> None:
    block = BandSplit(5, (3, 1, 7))
    assert list(block.buffers()) == []
    assert all(name.startswith("to_features.") for name in block.state_dict())
    block.half().to("meta").to_empty(device="cpu")
    assert block.groups.indices.on(CPU, "order").tolist() == [2, 0, 1]


def test_layer_with_constants_may_be_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        block = BandSplit(5, (3, 1, 7))
    assert block.groups.indices.on(CPU, "order").tolist() == [2, 0, 1]
