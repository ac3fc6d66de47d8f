"""Rotary embedding in place: what it computes, which memory it uses, and what gradients it takes and gives."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from rotary_embedding_torch import RotaryEmbedding as ReferenceRotaryEmbedding
from torch import Tensor

from hunterFormsBS.blocks.positions import RotaryEmbedding
from hunterFormsBS.kernels.rotation import rotate_in_place

LENGTH, HEADS, DIM_HEAD = 9, 3, 8


def packed(dim_head: int = DIM_HEAD, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, LENGTH, 3, HEADS, dim_head, dtype=dtype)


def vectors(dim_head: int = DIM_HEAD) -> Tensor:
    return RotaryEmbedding(dim_head).table(LENGTH)[0]


def reference_rotary(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (qkv[:, :, index].permute(0, 2, 1, 3).clone() for index in range(3))
    reference = ReferenceRotaryEmbedding(dim=qkv.shape[-1])
    return reference.rotate_queries_or_keys(q), reference.rotate_queries_or_keys(k), v


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dim_head", [4, 8, 64])
def test_rotated_queries_and_keys_equal_the_reference_and_values_stay(dim_head: int, requires_grad: bool) -> None:
    qkv = packed(dim_head).requires_grad_(requires_grad)
    expected = reference_rotary(qkv)
    torch.testing.assert_close(rotate_in_place(qkv * 1, vectors(dim_head)), expected)


def test_gradients_equal_those_of_the_reference() -> None:
    qkv, weights = packed(), torch.randn(3, 2, HEADS, LENGTH, DIM_HEAD)
    grads: list[Tensor] = []
    for place in (lambda qkv: rotate_in_place(qkv, vectors()), reference_rotary):
        leaf = qkv.clone().requires_grad_()
        sum((out * weight).sum() for out, weight in zip(place(leaf * 1), weights, strict=True)).backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_gradients_can_be_differentiated_again() -> None:
    qkv = packed(dtype=torch.float64).requires_grad_()
    table = vectors().double()
    assert torch.autograd.gradcheck(lambda x: rotate_in_place(x * 1, table), qkv)
    assert torch.autograd.gradgradcheck(lambda x: [out.square() for out in rotate_in_place(x * 1, table)], qkv)


def test_incoming_gradients_are_not_overwritten() -> None:
    qkv = packed().requires_grad_()
    outputs = rotate_in_place(qkv * 1, vectors())
    grads = [torch.randn_like(out) for out in outputs]
    before = [grad.clone() for grad in grads]
    torch.autograd.backward(outputs, grads)
    assert all(map(torch.equal, grads, before))
    assert qkv.grad is not None
    assert torch.equal(qkv.grad[:, :, 2], rearrange(grads[2], "b h n e -> b n h e"))
    assert not torch.equal(qkv.grad[:, :, 0], rearrange(grads[0], "b h n e -> b n h e"))


@pytest.mark.parametrize("unused", [0, 1, 2])
def test_gradients_in_any_order_of_memory_and_missing_ones_are_turned_back(unused: int) -> None:
    x, results = packed().requires_grad_(), []
    for outputs in (reference_rotary(x * 1), rotate_in_place(x * 1, vectors())):
        # The first sum's gradient is one number, expanded; the second's is transposed.
        used = [out for index, out in enumerate(outputs) if index != unused]
        weights = torch.randn(used[1].mT.shape, generator=torch.Generator().manual_seed(0))
        results.append(torch.autograd.grad(used[0].sum() + (used[1].mT * weights).sum(), x)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_memory_is_reused(requires_grad: bool) -> None:
    qkv = packed().requires_grad_(requires_grad) * 1
    before = qkv.detach().clone()
    outputs = rotate_in_place(qkv, vectors())
    assert {t.untyped_storage().data_ptr() for t in outputs} == {qkv.untyped_storage().data_ptr()}
    assert not torch.equal(qkv, before)


@pytest.mark.parametrize("pairs", ["apart", "strided"])
def test_memory_that_cannot_be_reused_is_an_error_and_not_a_copy(pairs: str) -> None:
    qkv = packed().transpose(-1, -2).contiguous().transpose(-1, -2) if pairs == "apart" else packed(17)[..., :-1:2]
    with pytest.raises(RuntimeError, match="stride"):
        rotate_in_place(qkv, vectors())
