"""Mask estimation compiles into one graph, whatever the options, and computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.theTypes import FlashAttentionConfig

pytestmark = pytest.mark.compile

Build = Callable[..., BandSplitRotator]

SMALLEST: dict[str, Any] = {
    "dim": 4,
    "depth": 1,
    "heads": 1,
    "dim_head": 2,
    "stft_n_fft": 8,
    "stft_win_length": 8,
    "stft_hop_length": 4,
    "dim_freqs_in": 5,
    "freqs_per_bands": (2, 3),
}
OVERLAPPING = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
DEEPER: dict[str, dict[str, Any]] = {
    "overlapping": {"mask_filter_bank": OVERLAPPING, "num_stems": 2, "stereo": True},
    "polar": {"use_pope": True},
    "linear, value residual, skip": {
        "depth": 2,
        "linear_transformer_depth": 1,
        "use_value_residual_learning": True,
        "skip_connection": True,
    },
    "streams": {"num_residual_streams": 2},
    "constrained streams and fracs": {
        "num_residual_streams": 2,
        "num_residual_fracs": 2,
        "mc_hyper_conn_sinkhorn_iters": 2,
    },
    "checkpointing": {"use_torch_checkpoint": True},
    "kernels": {"flash_attn": FlashAttentionConfig(enable_flash=False)},
    "explicit": {"flash_attn": False},
    "sage": {"sage_attention": True},
    "freq_range": {"freq_range": (1, 4), "freqs_per_bands": (1, 2), "zero_dc": True},
}


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def spectra(model: BandSplitRotator, *lengths: int) -> list[Tensor]:
    return [model.stft.forward(torch.randn(1, model.audio_channels, length)) for length in lengths]


def counting_backend(graphs: list[Any]) -> Callable[..., Any]:
    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    return backend


def test_mask_estimation_is_one_graph_for_all_lengths(tiny_model: Build) -> None:
    model, graphs = tiny_model(**SMALLEST), []
    compiled = torch.compile(model.mask_spectrum, fullgraph=True, dynamic=True, backend=counting_backend(graphs))
    with torch.no_grad():
        for spectrum in spectra(model, 37, 80, 140):
            expected = model.mask_spectrum(spectrum)
            torch.testing.assert_close(compiled(spectrum), expected, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


def test_static_graph_gives_the_gradients_of_eager_mode(tiny_model: Build) -> None:
    model = tiny_model(**SMALLEST)
    (spectrum,) = spectra(model, 37)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    compiled = torch.compile(model.mask_spectrum, fullgraph=True, dynamic=False, backend="aot_eager")
    actual, expected = (
        torch.autograd.grad(function(spectrum).square().sum(), parameters)
        for function in (compiled, model.mask_spectrum)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sage_attention=True has no effect:UserWarning")
@pytest.mark.parametrize("options", DEEPER.values(), ids=DEEPER)
def test_every_option_compiles_into_one_graph(options: Any, tiny_model: Build) -> None:
    model, graphs = tiny_model(**SMALLEST | options), []
    compiled = torch.compile(model.mask_spectrum, fullgraph=True, dynamic=True, backend=counting_backend(graphs))
    for spectrum in spectra(model, 37, 80):
        # Eager mode first: einops fills caches the first time, and a graph is guarded by what they hold.
        expected = model.mask_spectrum(spectrum)
        torch.testing.assert_close(compiled(spectrum), expected, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.slow
def test_inductor_computes_the_same(tiny_model: Build) -> None:
    model = tiny_model(**SMALLEST)
    compiled = torch.compile(model.mask_spectrum, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for spectrum in spectra(model, 37, 80):
            torch.testing.assert_close(compiled(spectrum), model.mask_spectrum(spectrum), rtol=1e-4, atol=1e-5)
