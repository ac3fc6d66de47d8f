"""The model on CUDA tensors that are not there: mistakes of device and dtype show without a GPU.

`FakeTensorMode` computes devices, dtypes and shapes, no values. Only the inverse STFT's own check, which looks at
values, is stubbed. It needs a PyTorch that was built with CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.blocks import spectrum
from hunterFormsBS.kernels.seam import noting_kernels
from hunterFormsBS.theTypes import FlashAttentionConfig

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this PyTorch was built without CUDA")

Build = Callable[..., BandSplitRotator]
OPTIONS: dict[str, dict[str, Any]] = {
    "side by side": {},
    "overlapping": {"overlapping": True},
    "freq_range": {"freq_range": (2, 33), "freqs_per_bands": (3, 4, 5, 7, 12)},
    "stereo stems": {"stereo": True, "num_stems": 3, "mask_estimator_depth": 2},
    "polar": {"use_pope": True},
    "linear": {"linear_transformer_depth": 1},
    "skips": {"skip_connection": True, "zero_dc": True},
    "values": {"use_value_residual_learning": True},
    "constant values": {"use_value_residual_learning": True, "learned_value_residual_mix": False},
    "streams": {"num_residual_streams": 2},
    "constrained": {"num_residual_streams": 2, "num_residual_fracs": 2, "mc_hyper_conn_sinkhorn_iters": 2},
    "checkpointing": {"use_torch_checkpoint": True, "num_stems": 2},
    "explicit": {"flash_attn": False},
    "backends": {"flash_attn": FlashAttentionConfig(enable_flash=False)},
    "dropout": {"attn_dropout": 0.1, "ff_dropout": 0.1},
}
SERVING = {"attention", "feed_forward", "by_blocks", "split_by_groups", "masks_by_groups", "complex_operator"}
"""Kernels that a GPU must take, whatever the options."""


def fake_istft(
    spectrum: Tensor, _n_fft: int, hop: int, *_more: object, length: int | None, **_options: object
) -> Tensor:
    """Return what `torch.istft` would, in device, dtype and shape."""
    samples = (spectrum.shape[-1] - 1) * hop if length is None else length
    return spectrum.real.sum(1)[:, :1].expand(-1, samples)


def move(model: nn.Module) -> None:
    """Put fake tensors on the default device in the place of a model's own; what layers share stays shared."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(spectrum, "istft", fake_istft)
    # Autocast asks whether there is a device.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_args: True)
    with noting_kernels() as names:
        yield names


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_stays_on_the_device_and_in_its_dtype(
    options: dict[str, Any], precision: str, tiny_model: Build, served: list[str]
) -> None:
    model = tiny_model(**options)
    if precision == "bfloat16":
        model = model.bfloat16()
    with FakeTensorMode(), torch.device("cuda"):
        move(model)
        audio = torch.randn(2, model.audio_channels, 500)
        target = torch.randn(2, model.num_stems, model.audio_channels, 500)
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "autocast"):
            with torch.no_grad():
                out = model.eval()(audio)
                some = model(audio, active_stem_ids=[model.num_stems - 1])
                loss = model(audio, target)
            # A backward pass would ask the device itself. The graph for it is recorded, except for the spectral term,
            # which makes its gradient at once.
            model.multi_stft = model.multi_stft._replace(multi_stft_resolution_loss_weight=0.0)
            waveform_loss = model.train()(audio, target)
        assert (out.device.type, out.dtype) == ("cuda", torch.float32)
        assert out.shape == target.shape
        assert some.shape == target[:, :1].shape
        for scalar in (loss, waveform_loss):
            assert (scalar.device.type, scalar.dtype) == ("cuda", torch.float32)
        assert waveform_loss.requires_grad
    missing = SERVING - set(served)
    if options.get("ff_dropout"):
        missing -= {"feed_forward"}
    assert not missing


def test_compared_with_a_cpu_only_kernels_of_devices_serve(tiny_model: Build, served: list[str]) -> None:
    model = tiny_model(overlapping=True).eval()
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        move(model)
        model(torch.randn(1, 1, 500))
    assert not set(served) & {"by_heads", "masks_by_bands", "gather_runs", "average_runs"}
