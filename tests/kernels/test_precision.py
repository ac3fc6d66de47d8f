"""Half weights, autocast and float64: what is computed in which precision, and how far it strays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.blocks.norm import RMSNorm

Build = Callable[..., BandSplitRotator]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlapping": {"overlapping": True},
    "polar": {"use_pope": True},
    "linear": {"linear_transformer_depth": 1},
    "streams": {"num_residual_streams": 2},
    "constrained streams": {"num_residual_streams": 2, "mc_hyper_conn_sinkhorn_iters": 2},
    "value residual": {"use_value_residual_learning": True},
    "checkpointing": {"use_torch_checkpoint": True},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


@each_option
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_weights_give_float32_audio_near_that_of_float32_weights(
    options: Any, dtype: torch.dtype, tolerance: float, tiny_model: Build
) -> None:
    model, audio = tiny_model(**options), torch.randn(2, 1, 200)
    expected = model(audio)
    out = model.to(dtype)(audio)
    assert model.band_split.to_features[0][1].weight.dtype == dtype  # type: ignore[index, union-attr]
    assert out.dtype == torch.float32
    assert relative(out, expected) < tolerance


@each_option
def test_autocast_gives_audio_and_gradients_near_those_of_float32(options: Any, tiny_model: Build) -> None:
    model, audio, target = tiny_model(**options), torch.randn(2, 1, 200), torch.randn(2, 1, 1, 200)
    results: list[dict[str, Tensor]] = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(audio)
            loss = model(audio, target)
        assert out.dtype == loss.dtype == torch.float32
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert {grad.dtype for grad in grads.values()} == {torch.float32}
        results.append(grads | {"out": out.detach(), "loss": loss.detach()})
    exact, rounded = results
    assert rounded.keys() == exact.keys()
    assert relative(rounded["out"], exact["out"]) < 0.03
    assert abs(rounded["loss"] - exact["loss"]) < 0.005 * exact["loss"]
    everything = [torch.cat([grads[name].flatten() for name in exact]) for grads in (rounded, exact)]
    assert relative(*everything) < 0.05


def test_autocast_reaches_the_linear_layers(tiny_model: Build) -> None:
    model, seen = tiny_model(), []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 1, 50))
    assert set(seen) == {torch.bfloat16}


def test_norms_of_half_models_are_computed_in_float32(tiny_model: Build) -> None:
    model, seen = tiny_model(norm_output=True).bfloat16(), []
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.register_forward_hook(lambda module, inputs, out: seen.append((module, inputs[0], out)))
    model(torch.randn(1, 1, 50))
    assert len(seen) == len([module for module in model.modules() if isinstance(module, RMSNorm)])
    for norm, given, out in seen:
        exact = nn.functional.normalize(given.float(), dim=-1) * given.shape[-1] ** 0.5 * norm.gamma.float()
        assert torch.equal(out, exact.bfloat16())


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_transforms_run_in_float32_whatever_the_weights(
    how: str, tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dtypes = tiny_model(), []
    stft, istft = model.stft.forward, model.stft.inverse

    def forward(audio: Tensor) -> Tensor:
        dtypes.append(stft(audio).dtype)
        return stft(audio)

    def inverse(spectrum: Tensor, length: int | None = None) -> Tensor:
        dtypes.append(istft(spectrum, length).dtype)
        return istft(spectrum, length)

    monkeypatch.setattr(model.stft, "forward", forward)
    monkeypatch.setattr(model.stft, "inverse", inverse)
    audio = torch.randn(1, 1, 50)
    if how == "weights":
        model.bfloat16()(audio.bfloat16())
    else:
        with torch.autocast("cpu", torch.bfloat16):
            model(audio)
    assert dtypes == [torch.float32, torch.float32]


def test_overlaps_are_averaged_in_float32(tiny_model: Build) -> None:
    model = tiny_model(overlapping=True).bfloat16()
    assert model.estimate_masks(torch.randn(1, 2, 5, 12).bfloat16(), [0]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_audio_is_separated_as_its_float32_copy(dtype: torch.dtype, tiny_model: Build) -> None:
    model, audio = tiny_model(), torch.randn(2, 1, 100).to(dtype)
    assert torch.equal(model(audio), model(audio.float()))


def test_half_models_can_be_trained(tiny_model: Build) -> None:
    model = tiny_model().bfloat16()
    loss = model(torch.randn(1, 1, 100), torch.randn(1, 1, 1, 100))
    loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert parameter.grad.dtype == parameter.dtype
            assert parameter.grad.isfinite().all()


@each_option
def test_float64_models_agree_with_float32_ones_more_closely_than_float32_resolves(
    options: Any, tiny_model: Build
) -> None:
    model, audio = tiny_model(**options), torch.randn(2, 1, 200)
    expected = model(audio)
    out = model.double()(audio.double())
    assert out.dtype == torch.float64
    assert relative(out, expected.double()) < 1e-5


@pytest.mark.parametrize("use_pope", [False, True])
def test_model_with_gradients_can_be_cast_and_trained_on(use_pope: bool, tiny_model: Build) -> None:
    model = tiny_model(use_pope=use_pope)
    model(torch.randn(1, 1, 50), torch.randn(1, 1, 1, 50)).backward()
    model.bfloat16()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.dtype == parameter.dtype, name
    torch.optim.Adam(model.parameters()).step()


@pytest.mark.parametrize("use_pope", [False, True])
def test_half_weights_may_be_assigned_and_positions_stay_float32(use_pope: bool, tiny_model: Build) -> None:
    model, audio = tiny_model(use_pope=use_pope), torch.randn(1, 1, 100)
    state_dict = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state_dict)
    expected = model(audio)
    model.load_state_dict(state_dict, assign=True)
    assert {tensor.dtype for name, tensor in model.state_dict().items() if "embed" in name} == {torch.float32}
    assert relative(model(audio), expected) < 0.03


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("how", ["float32", "bfloat16", "float16", "autocast"])
def test_quiet_and_loud_songs_come_out_as_quiet_and_as_loud(how: str, scale: float, tiny_model: Build) -> None:
    model, autocast = tiny_model(), how == "autocast"
    if not autocast:
        model = model.to(getattr(torch, how))
    # A tone at full scale: its spectrum, scaled, exceeds float16 and, the other way, gets lost in it.
    audio = torch.sin(torch.arange(400.0) * torch.pi / 4).expand(1, 1, -1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, out = model(audio), model(audio * scale)
    assert (model.stft.forward(audio) * 1e4).abs().max() > torch.finfo(torch.float16).max
    assert out.isfinite().all()
    assert relative(out / scale, expected) < 0.02
