"""Band-wise layers against loops over bands, and against themselves run another way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hunterFormsBS import bandSplit
from hunterFormsBS.bandSplit import MLP, BandSplit, MaskEstimator, masks_of_stems
from hunterFormsBS.kernels import seam
from hunterFormsBS.kernels.seam import KERNELS, Where, reference

WIDTHS = (4, 2, 6)

# BandSplit


def test_band_split_norms_and_projects_each_band_by_itself(randomise: Callable[[nn.Module], None]) -> None:
    block, x = BandSplit(5, WIDTHS), torch.randn(2, 3, 12)
    randomise(block)
    weights = dict(block.named_parameters())
    out = block(x)
    assert out.shape == (2, 3, 3, 5)
    start = 0
    for band, width in enumerate(WIDTHS):
        part = x[..., start : start + width]
        normed = part / part.norm(dim=-1, keepdim=True) * width**0.5 * weights[f"to_features.{band}.0.gamma"]
        expected = normed @ weights[f"to_features.{band}.1.weight"].T + weights[f"to_features.{band}.1.bias"]
        torch.testing.assert_close(out[:, :, band], expected)
        start += width


def test_band_split_has_upstream_keys() -> None:
    assert {name: tuple(tensor.shape) for name, tensor in BandSplit(5, (4, 2)).state_dict().items()} == {
        "to_features.0.0.gamma": (4,),
        "to_features.0.1.weight": (5, 4),
        "to_features.0.1.bias": (5,),
        "to_features.1.0.gamma": (2,),
        "to_features.1.1.weight": (5, 2),
        "to_features.1.1.bias": (5,),
    }


def test_digital_silence_gives_finite_tokens() -> None:
    assert BandSplit(5, WIDTHS)(torch.zeros(1, 2, 12)).isfinite().all()


# MLP and MaskEstimator


@pytest.mark.parametrize(("depth", "widths"), [(1, [3, 7, 2]), (2, [3, 7, 7, 2]), (3, [3, 7, 7, 7, 2])])
def test_mlp_has_tanh_between_linear_layers_and_nowhere_else(depth: int, widths: list[int]) -> None:
    mlp, x = MLP(3, 2, dim_hidden=7, depth=depth), torch.randn(4, 3)
    linears = list(mlp)[::2]
    assert [linear.weight.shape for linear in linears] == [(b, a) for a, b in pairwise(widths)]
    expected = x
    for index, linear in enumerate(linears):
        expected = expected @ linear.weight.T + linear.bias
        expected = expected.tanh() if index < depth else expected
    torch.testing.assert_close(mlp(x), expected)


def test_mlp_has_one_hidden_layer_by_default() -> None:
    assert list(MLP(3, 2, dim_hidden=7).state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("depth", [1, 2])
def test_mask_estimator_gates_the_first_half_by_the_second(depth: int) -> None:
    block, x = MaskEstimator(5, WIDTHS, mask_estimator_depth=depth, mlp_expansion_factor=3), torch.randn(2, 3, 3, 5)
    weights, parts = dict(block.named_parameters()), []
    for band, width in enumerate(WIDTHS):
        hidden = x[:, :, band]
        for layer in range(depth + 1):
            prefix = f"to_freqs.{band}.0.{2 * layer}."
            hidden = hidden @ weights[prefix + "weight"].T + weights[prefix + "bias"]
            hidden = hidden.tanh() if layer < depth else hidden
        parts.append(hidden[..., :width] / (1 + torch.exp(-hidden[..., width:])))
    torch.testing.assert_close(block(x), torch.cat(parts, -1))


def test_mask_estimator_has_upstream_keys() -> None:
    block = MaskEstimator(5, (4, 2), mask_estimator_depth=2, mlp_expansion_factor=3)
    expected: dict[str, tuple[int, ...]] = {}
    for band, width in enumerate((4, 2)):
        for layer, shape in {0: (15, 5), 2: (15, 15), 4: (2 * width, 15)}.items():
            expected[f"to_freqs.{band}.0.{layer}.weight"] = shape
            expected[f"to_freqs.{band}.0.{layer}.bias"] = shape[:1]
    assert {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} == expected


def test_mask_estimator_is_four_times_as_wide_by_default() -> None:
    assert MaskEstimator(5, (4,)).to_freqs[0][0][0].weight.shape == (20, 5)  # type: ignore[index, union-attr]


# Products shared among bands of like width, for devices where launches are dear, and bands one by one on a CPU

UNSORTED = (4, 4, 2, 10, 4, 6, 6, 26, 2, 6)


def gradients(out: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    leaves = [x, *module.parameters()]
    return list(torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), leaves))


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul")
        return func(*args, **(kwargs or {}))


def test_band_split_with_shared_products_computes_the_same(randomise: Callable[[nn.Module], None]) -> None:
    block, x = BandSplit(5, UNSORTED), torch.randn(2, 3, sum(UNSORTED), requires_grad=True)
    randomise(block)
    with reference():
        expected = block(x)
    with Products() as products:
        actual = KERNELS["split_by_groups"].run(block, x)
    assert products.count == len(block.groups.groups) == 3
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, block, x), gradients(expected, block, x))


@pytest.mark.parametrize("num_stems", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("name", ["masks_by_bands", "masks_by_groups"])
def test_mask_estimators_compute_the_same_together(
    num_stems: int, depth: int, name: str, randomise: Callable[[nn.Module], None]
) -> None:
    estimators = nn.ModuleList(MaskEstimator(5, UNSORTED, mask_estimator_depth=depth) for _ in range(num_stems))
    randomise(estimators)
    x = torch.randn(2, 3, len(UNSORTED), 5, requires_grad=True)
    with reference():
        expected = torch.stack([estimator(x) for estimator in estimators], dim=1)
    with Products() as products:
        actual = KERNELS[name].run(list(estimators), x)
    if name == "masks_by_groups":
        assert products.count == depth + 3, "one for each hidden layer, and one for each group of bands"
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, estimators, x), gradients(expected, estimators, x))


@pytest.mark.parametrize("name", ["mask_by_bands", "mask_by_groups"])
def test_mask_estimator_by_itself_computes_the_same(name: str, randomise: Callable[[nn.Module], None]) -> None:
    estimator, x = MaskEstimator(5, UNSORTED), torch.randn(2, 3, len(UNSORTED), 5, requires_grad=True)
    randomise(estimator)
    with reference():
        expected = estimator(x)
    actual = KERNELS[name].run(estimator, x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, estimator, x), gradients(expected, estimator, x))


def test_estimating_masks_band_by_band_stores_no_more_than_the_formula(
    bytes_saved_for_backward: Callable[[], AbstractContextManager[dict[int, int]]],
) -> None:
    estimator, x = MaskEstimator(5, WIDTHS), torch.randn(2, 30, 3, 5)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in estimator.parameters()}

    def stored(estimate: Callable[..., Tensor]) -> int:
        with bytes_saved_for_backward() as saved:
            out = estimate(estimator, x)
        assert out.requires_grad
        # The formula stores each band's tokens as a view of all, the kernel as a copy: together they are as large.
        return sum(size for address, size in saved.items() if address not in parameters)

    with reference():
        by_formula = stored(MaskEstimator.forward)
    assert stored(KERNELS["mask_by_bands"].run) <= by_formula


@pytest.fixture(params=[Where.CPU, Where.DEVICE, Where.GRAPH], ids=["CPU", "device", "graph"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Where:
    """Let layers take the kernels of one place, wherever they run."""
    monkeypatch.setattr(seam, "where_of", lambda _tensors: request.param)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param is Where.GRAPH)
    place: Where = request.param
    return place


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("path", ["1", "1.1", "to_freqs.2", "to_freqs.2.0", "to_freqs.2.0.0", "to_freqs.2.0.1"])
def test_hook_on_a_band_is_called_whatever_kernels_there_are(path: str) -> None:
    block, estimators = BandSplit(5, WIDTHS), [MaskEstimator(5, WIDTHS) for _ in range(2)]
    owner = estimators[1] if path.startswith("to_freqs") else block.to_features
    hooked, seen = owner.get_submodule(path), []
    hooked.register_forward_pre_hook(lambda module, *_: seen.append(module))
    tokens = block(torch.randn(2, 3, 12))
    masks = masks_of_stems(estimators, tokens)
    assert masks.shape == (2, 2, 3, 12)
    assert seen == [hooked]


@pytest.mark.usefixtures("where")
def test_hook_on_a_mask_estimator_sees_its_mask() -> None:
    estimators, seen = [MaskEstimator(5, WIDTHS) for _ in range(2)], []
    estimators[1].register_forward_hook(lambda _module, _inputs, out: seen.append(out.clone()))
    masks = masks_of_stems(estimators, torch.randn(2, 3, 3, 5))
    torch.testing.assert_close(seen, [masks[:, 1]])


@pytest.mark.usefixtures("where")
def test_replaced_layers_take_part_whatever_kernels_there_are() -> None:
    block, estimator, x = BandSplit(5, WIDTHS), MaskEstimator(5, WIDTHS), torch.randn(2, 3, 12)
    block.to_features[1][1] = nn.Sequential(block.to_features[1][1], nn.Threshold(1e9, 7.0))  # type: ignore[index, operator]
    tokens = block(x)
    assert tokens[:, :, 1].eq(7).all()
    estimator.to_freqs[1] = nn.Sequential(estimator.to_freqs[1], nn.Threshold(1e9, 3.0))
    columns = slice(WIDTHS[0], WIDTHS[0] + WIDTHS[1])
    assert masks_of_stems([estimator, estimator], tokens)[..., columns].eq(3).all()
    assert estimator(tokens)[..., columns].eq(3).all()


def test_products_are_shared_anywhere_but_on_a_cpu(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    block, estimators, ran = BandSplit(5, WIDTHS), [MaskEstimator(5, WIDTHS) for _ in range(2)], []
    for name in ("split_by_groups", "masks_by_groups", "mask_by_groups", "masks_by_bands", "mask_by_bands"):
        run = KERNELS[name].run
        monkeypatch.setattr(KERNELS[name], "run", lambda *a, name=name, run=run: ran.append(name) or run(*a))
    tokens = block(torch.randn(2, 3, 12))
    masks_of_stems(estimators, tokens)
    estimators[0](tokens)
    shared = ["split_by_groups", "masks_by_groups", "mask_by_groups"]
    assert ran == (shared if where is not Where.CPU else ["masks_by_bands", "mask_by_bands"])


# Names


def test_layouts_are_found_where_the_band_layers_are() -> None:
    assert sum(bandSplit.DEFAULT_FREQS_PER_BANDS) == 1025
    assert bandSplit.mask_filter_bank_bs_roformer_default.shape == (62, 1025)
    assert bandSplit.mask_filter_bank_mel_band_default.shape == (60, 1025)
    assert bandSplit.mask_filter_bank_non_overlapping((1, 2), 3).tolist() == [[True, False, False], [False, True, True]]
    assert bandSplit.mask_filter_bank_mel(44100, 2048, 60).equal(bandSplit.mask_filter_bank_mel_band_default)
