"""Position embeddings against rotary-embedding-torch, PoPE_pytorch and plain trigonometry."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import pytest
import torch
from PoPE_pytorch import PoPE
from rotary_embedding_torch import RotaryEmbedding as ReferenceRotaryEmbedding
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.blocks.positions import (
    PolarEmbedding,
    PositionEmbedding,
    RotaryEmbedding,
    complex_product,
    unit_vectors,
)
from hunterFormsBS.kernels.seam import KERNELS, reference

LENGTH, HEADS, DIM_HEAD = 9, 3, 8

both_ways = pytest.mark.parametrize("way", [reference, nullcontext], ids=["reference", "kernels"])
Way: TypeAlias = Callable[[], AbstractContextManager[None]]


def queries_and_keys(
    length: int = LENGTH, dim_head: int = DIM_HEAD, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return views into one memory, as attention has them."""
    packed = torch.randn(2, length, 2, HEADS, dim_head).to(dtype)
    return packed[:, :, 0].transpose(1, 2), packed[:, :, 1].transpose(1, 2)


def reference_rotary(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    reference = ReferenceRotaryEmbedding(dim=q.shape[-1])
    return reference.rotate_queries_or_keys(q), reference.rotate_queries_or_keys(k)


def reference_polar(q: Tensor, k: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    reference = PoPE(q.shape[-1], heads=HEADS)
    reference.bias = nn.Parameter(bias)
    rotated: tuple[Tensor, Tensor] = reference.apply_pope_to_qk(reference(q.shape[-2]), q, k)
    return rotated


def bias_beyond_its_range() -> Tensor:
    return torch.linspace(-9.0, 3.0, HEADS * DIM_HEAD).view(HEADS, DIM_HEAD)


# Rotary


@both_ways
@pytest.mark.parametrize("dim_head", [4, 8, 64])
def test_rotated_queries_and_keys_equal_the_reference_and_what_came_in_stays(way: Way, dim_head: int) -> None:
    (q, k), embedding = queries_and_keys(dim_head=dim_head), RotaryEmbedding(dim_head)
    before = q.clone(), k.clone()
    with way():
        torch.testing.assert_close(embedding(q, k), reference_rotary(q, k))
    assert all(map(torch.equal, (q, k), before))


def test_first_pair_turns_by_one_radian_a_position() -> None:
    embedding = RotaryEmbedding(2)
    ones = torch.zeros(1, 1, 4, 2)
    ones[..., 0] = 1
    q, k = embedding(ones, ones)
    circle = torch.tensor([[math.cos(position), math.sin(position)] for position in range(4)])
    torch.testing.assert_close(q[0, 0], circle)
    torch.testing.assert_close(k[0, 0], circle)


def test_frequencies_fall_from_one_by_a_power_of_theta() -> None:
    embedding = RotaryEmbedding(6, theta=1000.0)
    torch.testing.assert_close(embedding.freqs, torch.tensor([1.0, 1e-1, 1e-2]), rtol=1e-5, atol=0)


def test_frequencies_are_stored_but_not_trained() -> None:
    embedding = RotaryEmbedding(DIM_HEAD)
    assert {name: tuple(tensor.shape) for name, tensor in embedding.state_dict().items()} == {"freqs": (4,)}
    assert not embedding.freqs.requires_grad
    assert torch.equal(embedding.freqs, ReferenceRotaryEmbedding(dim=DIM_HEAD).freqs)


@both_ways
def test_gradients_equal_those_of_the_reference(way: Way) -> None:
    embedding, weights = RotaryEmbedding(DIM_HEAD), torch.randn(2, 2, HEADS, LENGTH, DIM_HEAD)
    leaves = [t.detach().requires_grad_() for t in queries_and_keys()]
    with way():
        results = [
            torch.autograd.grad((torch.stack(embed(*leaves)) * weights).sum(), leaves)
            for embed in (embedding, reference_rotary)
        ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@both_ways
def test_other_dtypes_are_rotated_in_float32_or_better_and_come_back(way: Way, dtype: torch.dtype) -> None:
    (q, k), embedding = queries_and_keys(dtype=dtype), RotaryEmbedding(DIM_HEAD)
    wide = torch.promote_types(dtype, torch.float32)
    expected = [t.to(dtype) for t in reference_rotary(q.to(wide), k.to(wide))]
    with way():
        rotated = embedding(q, k)
    for actual, wanted in zip(rotated, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-2 if dtype == torch.bfloat16 else 2e-3, atol=1e-6)


def test_score_depends_on_distance_only() -> None:
    embedding = RotaryEmbedding(DIM_HEAD)
    q, k = embedding(*(t.expand(2, HEADS, 40, DIM_HEAD) for t in queries_and_keys(1)))  # the same at every position
    scores = q @ k.transpose(-1, -2)
    torch.testing.assert_close(scores[..., 7:, 7:], scores[..., :-7, :-7], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores[..., 7:, :], scores[..., :-7, :], atol=0.1)


def test_odd_head_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"dim_head=5 is odd.*use_pope=True"):
        RotaryEmbedding(5)


# Polar


@pytest.mark.parametrize("dim_head", [1, 5, 8])
def test_polar_queries_and_keys_equal_the_reference_and_what_came_in_stays(dim_head: int) -> None:
    (q, k), embedding = queries_and_keys(dim_head=dim_head), PolarEmbedding(dim_head, HEADS)
    before = q.clone(), k.clone()
    with torch.no_grad():
        embedding.bias.uniform_(-9, 3)
    torch.testing.assert_close(embedding(q, k), reference_polar(q, k, embedding.bias.detach()))
    assert all(map(torch.equal, (q, k), before))


def test_polar_gradients_equal_those_of_the_reference_also_of_the_clamped_bias() -> None:
    embedding, qk, bias = PolarEmbedding(DIM_HEAD, HEADS), queries_and_keys(), bias_beyond_its_range()
    weights = torch.randn(2, 2, HEADS, LENGTH, 2 * DIM_HEAD)
    embedding.bias = nn.Parameter(bias)
    reference = PoPE(DIM_HEAD, heads=HEADS)
    reference.bias = nn.Parameter(bias.clone())
    mine, theirs = ([t.clone().requires_grad_() for t in qk] for _ in range(2))

    (torch.stack(embedding(*mine)) * weights).sum().backward()
    q, k = reference.apply_pope_to_qk(reference(LENGTH), *theirs)
    (torch.stack((q, k)) * weights).sum().backward()

    torch.testing.assert_close([t.grad for t in mine], [t.grad for t in theirs])
    torch.testing.assert_close(embedding.bias.grad, reference.bias.grad)
    assert embedding.bias.grad is not None
    within = (bias >= -2 * math.pi) & (bias <= 0)
    assert torch.equal(embedding.bias.grad != 0, within)


def test_polar_state_equals_that_of_the_reference() -> None:
    mine, theirs = PolarEmbedding(DIM_HEAD, HEADS).state_dict(), PoPE(DIM_HEAD, heads=HEADS).state_dict()
    assert mine.keys() == theirs.keys() == {"inv_freqs", "bias"}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_polar_magnitude_is_softplus_and_angle_is_position_times_frequency() -> None:
    embedding = PolarEmbedding(2, 1, theta=4.0)
    with torch.no_grad():
        embedding.bias.copy_(torch.tensor([[-1.0, -0.25]]))
    features = torch.full((1, 1, 4, 2), 0.7)
    q, k = embedding(features, features)
    magnitude = math.log(1 + math.exp(0.7))
    frequency = [1.0, 0.5]
    for position in range(4):
        angles = [position * frequency[0], position * frequency[1]]
        expected_q = [magnitude * f(angle) for angle in angles for f in (math.cos, math.sin)]
        angles = [angles[0] - 1.0, angles[1] - 0.25]
        expected_k = [magnitude * f(angle) for angle in angles for f in (math.cos, math.sin)]
        torch.testing.assert_close(q[0, 0, position], torch.tensor(expected_q))
        torch.testing.assert_close(k[0, 0, position], torch.tensor(expected_k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_polar_half_types_are_turned_in_float32_and_come_back(dtype: torch.dtype) -> None:
    (q, k), embedding = queries_and_keys(400, dtype=dtype), PolarEmbedding(DIM_HEAD, HEADS)
    expected = reference_polar(q.float(), k.float(), embedding.bias.detach())
    for actual, wanted in zip(embedding(q, k), expected, strict=True):
        assert actual.dtype == dtype
        # Rounded once, at the end: twice would put every tenth number one step off.
        assert (actual == wanted.to(dtype)).float().mean() > 0.99


# Tables


@pytest.mark.parametrize(
    ("embedding", "shapes"),
    [
        (RotaryEmbedding(8), [(LENGTH, 4, 2)]),
        (PolarEmbedding(8, HEADS), [(LENGTH, 8, 2), (HEADS, LENGTH, 8, 2)]),
    ],
    ids=["rotary", "polar"],
)
def test_embedding_is_what_embed_does_with_a_table_of_unit_vectors(
    embedding: PositionEmbedding, shapes: list[tuple[int, ...]]
) -> None:
    table, (q, k) = embedding.table(LENGTH), queries_and_keys()
    assert [tuple(vectors.shape) for vectors in table] == shapes
    for vectors in table:
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    assert all(map(torch.equal, embedding(q, k), embedding.embed(q, k, table)))


@pytest.mark.parametrize("kind", [lambda: RotaryEmbedding(8), lambda: PolarEmbedding(8, HEADS)])
def test_angles_are_right_at_positions_of_long_songs(kind: Callable[[], Any]) -> None:
    embedding = kind()
    freqs = (embedding.freqs if isinstance(embedding, RotaryEmbedding) else embedding.inv_freqs).tolist()
    last = embedding.table(20001)[0][-1]
    expected = [[math.cos(20000 * freq), math.sin(20000 * freq)] for freq in freqs]
    torch.testing.assert_close(last, torch.tensor(expected), rtol=0, atol=3e-3)


@pytest.mark.parametrize("kind", [lambda: RotaryEmbedding(DIM_HEAD), lambda: PolarEmbedding(DIM_HEAD, HEADS)])
def test_table_follows_the_state_dict(kind: Callable[[], Any]) -> None:
    embedding, changed = kind(), kind()
    stale = embedding.table(LENGTH)
    with torch.no_grad():
        for tensor in changed.state_dict().values():
            tensor.mul_(0.5).sub_(0.1)
    embedding.load_state_dict(changed.state_dict())
    for before, after, expected in zip(stale, embedding.table(LENGTH), changed.table(LENGTH), strict=True):
        assert torch.equal(after, expected)
        assert not torch.allclose(after, before)


@pytest.mark.parametrize("use_pope", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.half(),
        lambda model: model.double(),
        lambda model: copy.deepcopy(model).to("cpu", torch.float16),
        lambda model: copy.deepcopy(model.bfloat16()),
        lambda model: model.bfloat16().float(),
    ],
    ids=["to(bfloat16)", "half", "double", "deepcopy then to", "bfloat16 then deepcopy", "there and back"],
)
def test_casting_a_model_leaves_frequencies_in_float32_to_the_last_bit(
    use_pope: bool, change: Callable[[nn.Module], nn.Module], tiny_model: Callable[..., BandSplitRotator]
) -> None:
    model = tiny_model(use_pope=use_pope)
    suffixes = ("freqs", "inv_freqs", "pope_embed.bias")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(suffixes):
                tensor.add_(1 / 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith(suffixes)}
    state_dict = change(model).state_dict()
    assert len(before) == (8 if use_pope else 4)
    for name, tensor in before.items():
        assert state_dict[name].dtype == torch.float32
        assert torch.equal(state_dict[name], tensor)


@pytest.mark.parametrize("use_pope", [False, True])
def test_casting_on_the_meta_device_leaves_frequencies_in_float32(
    use_pope: bool, tiny_model: Callable[..., BandSplitRotator]
) -> None:
    model = tiny_model(use_pope=use_pope).to("meta").bfloat16().to_empty(device="cpu")
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items() if "embed" in name}
    assert dtypes
    assert set(dtypes.values()) == {torch.float32}
    assert model.state_dict()["layers.0.0.layers.0.0.to_qkv.weight"].dtype == torch.bfloat16


def test_complex_product_in_real_arithmetic_equals_complex_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(4, 1, 3, 2), torch.randn(5, 3, 2)
    expected = torch.view_as_real(torch.view_as_complex(x) * torch.view_as_complex(y))
    torch.testing.assert_close(complex_product(x, y), expected)
    torch.testing.assert_close(KERNELS["complex_operator"].run(x, y), expected)
    monkeypatch.setattr(KERNELS["complex_operator"], "run", lambda *_: pytest.fail("complex numbers were used"))
    with reference():
        torch.testing.assert_close(complex_product(x, y), expected)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(complex_product(x, y), expected)


def test_unit_vectors_are_cosine_and_sine() -> None:
    angles = [0.0, 1.0, -2.5]
    expected = [[math.cos(angle), math.sin(angle)] for angle in angles]
    torch.testing.assert_close(unit_vectors(torch.tensor(angles)), torch.tensor(expected))
