"""Residual streams: packing against naive loops, hyper-connections against their closed form at initialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hyper_connections
import pytest
import torch
from torch import Tensor, nn

from hunterFormsBS.blocks.residual import (
    expand_streams,
    has_streams,
    reduce_streams,
    reset_connection,
    residual_wrapper,
)
from hunterFormsBS.theTypes import ParametersResidual

THREE = ParametersResidual(num_residual_streams=3, num_residual_fracs=1, mc_hyper_conn_sinkhorn_iters=None)


class Recorder(nn.Module):
    """Returns `3 · x`, what it was called with, and remembers x."""

    def forward(self, x: Tensor, word: str = "") -> tuple[Tensor, str]:
        self.x = x
        return 3 * x, word


def silent(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def wrapper(dim: int = 6, **overrides: Any) -> Callable[[nn.Module, int], nn.Module]:
    return residual_wrapper(dim, THREE._replace(**overrides))


@pytest.mark.parametrize(("streams", "fracs", "expected"), [(1, 1, False), (2, 1, True), (1, 2, True), (4, 2, True)])
def test_sublayers_are_wrapped_when_there_is_more_than_one_stream_or_piece(
    streams: int, fracs: int, expected: bool
) -> None:
    assert has_streams(ParametersResidual(streams, fracs)) is expected
    recorder = Recorder()
    assert (residual_wrapper(6, ParametersResidual(streams, fracs))(recorder, 0) is not recorder) is expected


def test_streams_of_an_item_lie_side_by_side() -> None:
    x = torch.randn(2, 5, 3)
    expanded = expand_streams(x, 3)
    assert expanded.shape == (6, 5, 3)
    for item in range(2):
        for stream in range(3):
            assert torch.equal(expanded[3 * item + stream], x[item])


def test_streams_of_an_item_are_summed() -> None:
    x = torch.randn(6, 5, 4)
    expected = torch.stack([x[3 * item] + x[3 * item + 1] + x[3 * item + 2] for item in range(2)])
    torch.testing.assert_close(reduce_streams(x, 3), expected)


def test_one_stream_is_neither_copied_nor_summed() -> None:
    x = torch.randn(2, 3)
    assert expand_streams(x, 1) is x
    assert reduce_streams(x, 1) is x


@pytest.mark.parametrize("index", [0, 1, 2, 3, 7])
def test_sublayer_reads_the_stream_of_its_index_at_first_and_writes_to_all(index: int) -> None:
    recorder, streams = Recorder(), torch.randn(2, 3, 5, 6)  # item, stream, position, feature
    out, word = wrapper()(recorder, index)(streams.flatten(0, 1), word="kept")
    chosen = streams[:, index % 3]
    torch.testing.assert_close(recorder.x, chosen)
    torch.testing.assert_close(out, (streams + 3 * chosen[:, None]).flatten(0, 1))
    assert word == "kept"


def test_unconstrained_streams_are_hyper_connections() -> None:
    wrapped = wrapper(num_residual_fracs=2)(Recorder(), 0)
    assert type(wrapped) is hyper_connections.HyperConnections
    assert wrapped.num_residual_streams == 3
    assert wrapped.num_fracs == 2


def test_constrained_streams_are_manifold_constrained_hyper_connections() -> None:
    wrapped = wrapper(mc_hyper_conn_sinkhorn_iters=5, num_residual_fracs=2)(Recorder(), 0)
    assert type(wrapped) is hyper_connections.ManifoldConstrainedHyperConnections
    assert wrapped.num_residual_streams == 3
    assert wrapped.num_fracs == 2


@pytest.mark.parametrize(("iterations", "keeps_the_sum"), [(30, True), (None, False)])
def test_constraint_keeps_the_sum_of_streams_however_they_are_mixed(
    iterations: int | None, keeps_the_sum: bool, randomise: Callable[[nn.Module], None]
) -> None:
    wrapped = wrapper(mc_hyper_conn_sinkhorn_iters=iterations)(silent, 0)
    randomise(wrapped)
    x = torch.randn(6, 5, 6)
    assert torch.allclose(reduce_streams(wrapped(x), 3), reduce_streams(x, 3), atol=1e-3) is keeps_the_sum


def test_number_of_iterations_changes_the_mixing(randomise: Callable[[nn.Module], None]) -> None:
    one, many = (wrapper(mc_hyper_conn_sinkhorn_iters=iterations)(silent, 0) for iterations in (1, 30))
    randomise(one)
    many.load_state_dict(one.state_dict())
    x = torch.randn(6, 5, 6)
    assert not torch.allclose(one(x), many(x), atol=1e-4)


def test_pieces_of_the_features_are_mixed_among_each_other() -> None:
    recorder, x = Recorder(), torch.randn(2, 5, 6)
    out, _ = wrapper(num_residual_streams=1, num_residual_fracs=2)(recorder, 0)(x)
    # At first both inputs read the first piece, and both outputs go to both pieces.
    first = x[..., :3]
    torch.testing.assert_close(recorder.x, torch.cat((first, first), dim=-1))
    torch.testing.assert_close(out, x + 2 * 3 * torch.cat((first, first), dim=-1))


def test_wrapping_draws_no_random_number() -> None:
    wraps = [wrapper()(Recorder(), 1).state_dict() for _ in range(5)]
    assert all(torch.equal(wrap["static_alpha"], wraps[0]["static_alpha"]) for wrap in wraps)


@pytest.mark.parametrize("iterations", [None, 5])
def test_reset_gives_a_wrapper_and_not_its_sublayer_what_it_had_at_first(
    iterations: int | None, randomise: Callable[[nn.Module], None]
) -> None:
    parameters = THREE._replace(mc_hyper_conn_sinkhorn_iters=iterations)
    wrapped = residual_wrapper(6, parameters)(nn.Linear(6, 6), 1)
    before = {name: tensor.clone() for name, tensor in wrapped.named_parameters()}
    randomise(wrapped)
    changed = {name: tensor.clone() for name, tensor in wrapped.named_parameters()}
    reset_connection(wrapped, 6, parameters, 1)
    for name, tensor in wrapped.named_parameters():
        assert torch.equal(tensor, (changed if name.startswith("branch.") else before)[name]), name
