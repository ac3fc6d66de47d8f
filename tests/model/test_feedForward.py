"""The feedforward block against its formula, and its fast path against what people hang on its layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hunterFormsBS.blocks.feedForward import FeedForward


class LowRank(nn.Module):
    """Adds a low-rank update to a Linear, as LoRA does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(2, linear.in_features))
        self.up = nn.Parameter(torch.randn(linear.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.down.T @ self.up.T


def expected_output(block: FeedForward, x: Tensor) -> Tensor:
    """Compute the block from its parameters, with the error function for GELU."""
    parameters = dict(block.named_parameters())
    normed = x / x.norm(dim=-1, keepdim=True) * math.sqrt(x.shape[-1]) * parameters["net.0.gamma"]
    hidden = normed @ parameters["net.1.weight"].T + parameters["net.1.bias"]
    activated = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return activated @ parameters["net.4.weight"].T + parameters["net.4.bias"]


@pytest.fixture
def block(randomise: Callable[[nn.Module], None]) -> FeedForward:
    block = FeedForward(6, ff_mult=3)
    randomise(block)
    return block


@pytest.mark.parametrize("training", [True, False])
def test_block_is_norm_linear_exact_gelu_linear(block: FeedForward, training: bool) -> None:
    x = torch.randn(2, 5, 6) * 3
    torch.testing.assert_close(block.train(training)(x), expected_output(block, x))


@pytest.mark.parametrize("leading", [(), (1,), (0,), (2, 3, 5)])
@pytest.mark.parametrize("grad", [True, False])
def test_any_leading_axes_are_kept(block: FeedForward, leading: tuple[int, ...], grad: bool) -> None:
    x = torch.randn(*leading, 6, requires_grad=grad)
    out = block(x)
    torch.testing.assert_close(out, expected_output(block, x))
    if grad:
        torch.testing.assert_close(
            *(torch.autograd.grad(y.square().sum(), x) for y in (out, expected_output(block, x)))
        )


def test_parameters_have_upstream_names_and_shapes() -> None:
    assert {name: tuple(tensor.shape) for name, tensor in FeedForward(6).state_dict().items()} == {
        "net.0.gamma": (6,),
        "net.1.weight": (24, 6),
        "net.1.bias": (24,),
        "net.4.weight": (6, 24),
        "net.4.bias": (6,),
    }


def test_gradients_equal_those_of_the_formula(block: FeedForward) -> None:
    x, weight = torch.randn(2, 5, 6, requires_grad=True), torch.randn(2, 5, 6)
    leaves = [x, *block.parameters()]
    actual = torch.autograd.grad((block(x) * weight).sum(), leaves)
    expected = torch.autograd.grad((expected_output(block, x) * weight).sum(), leaves)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layer", range(6))
def test_hook_on_any_layer_sees_its_output_and_may_replace_it(block: FeedForward, layer: int) -> None:
    x = torch.randn(2, 5, 6)
    expected = nn.Sequential(*block.net)[: layer + 1](x)
    seen: list[Tensor] = []

    def double(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.clone())
        return 2 * output

    block.net[layer].register_forward_hook(double)
    out = block(x)
    torch.testing.assert_close(seen, [expected])
    torch.testing.assert_close(out, nn.Sequential(*block.net)[layer + 1 :](2 * expected))


def test_hook_on_the_sequence_is_called(block: FeedForward) -> None:
    seen: list[Tensor] = []
    block.net.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    out = block(torch.randn(2, 5, 6))
    assert len(seen) == 1
    assert seen[0] is out


@pytest.mark.parametrize("layer", [1, 4])
def test_low_rank_update_takes_part_and_is_trained(block: FeedForward, layer: int) -> None:
    x = torch.randn(2, 5, 6)
    update = LowRank(block.net[layer])  # type: ignore[arg-type]
    merged = FeedForward(6, ff_mult=3)
    merged.load_state_dict(block.state_dict())
    with torch.no_grad():
        merged.net[layer].weight += update.up @ update.down  # type: ignore[operator]
    block.net[layer] = update
    out = block(x)
    torch.testing.assert_close(out, merged(x), rtol=1e-4, atol=1e-4)
    out.sum().backward()
    assert update.down.grad is not None
    assert update.down.grad.any()


@pytest.mark.parametrize("layer", [3, 5])
def test_dropout_acts_after_the_activation_and_at_the_end(layer: int) -> None:
    block = FeedForward(4, ff_mult=256, ff_dropout=0.25)
    assert [getattr(block.net[index], "p", None) for index in (3, 5)] == [0.25, 0.25]
    seen: list[Tensor] = []
    block.net[layer].register_forward_hook(lambda _module, inputs, output: seen.extend((inputs[0], output)))
    block(torch.randn(300, 4))
    before, after = seen
    kept = after != 0
    torch.testing.assert_close(after[kept], before[kept] / 0.75)
    assert 0.2 < 1 - kept.float().mean() < 0.3


def test_dropout_drops_in_training_and_not_in_evaluation(block: FeedForward) -> None:
    dropping, x = FeedForward(6, ff_mult=3, ff_dropout=0.5), torch.randn(50, 6)
    dropping.load_state_dict(block.state_dict())
    assert 0.4 < (dropping(x) == 0).float().mean() < 0.6
    torch.testing.assert_close(dropping.eval()(x), expected_output(block, x))


@pytest.mark.parametrize("layer", [3, 5])
def test_each_dropout_obeys_its_own_setting(block: FeedForward, layer: int) -> None:
    x = torch.randn(50, 6)
    block.net[layer].p = 0.5  # type: ignore[assignment]
    assert (block(x) - expected_output(block, x)).abs().max() > 0.1


@pytest.mark.parametrize("layer", [3, 5])
def test_dropout_kept_on_in_evaluation_still_drops(layer: int) -> None:
    block, x = FeedForward(6, ff_mult=3, ff_dropout=0.5).eval(), torch.randn(50, 6)
    block.net[layer].train()
    assert (block(x) - expected_output(block, x)).abs().max() > 0.1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [3, 5])
def test_dropout_may_be_taken_out(block: FeedForward, layer: int, training: bool) -> None:
    x = torch.randn(2, 5, 6)
    block.net[layer] = nn.Identity()
    torch.testing.assert_close(block.train(training)(x), expected_output(block, x))


def test_layer_added_at_the_end_takes_part(block: FeedForward) -> None:
    x = torch.randn(2, 5, 6)
    block.net.append(nn.Tanh())
    torch.testing.assert_close(block(x), expected_output(block, x).tanh())
