"""FNO heads: the formula by fast Fourier transforms, and checkpoints in the form in which neuraloperator saves them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import CheckpointError, from_checkpoint, from_configuration, save_checkpoint
from hunterFormsBS.heads.fourier import FourierConvolution, FourierOperator
from tests.models import TINY

ARGUMENTS: dict[str, Any] = TINY | {"mlp_expansion_factor": 4, "mask_fno_modes": 5, "num_stems": 2, "zero_dc": True}


def moved(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def spectral(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply the lowest frequencies, as neuraloperator does, by PyTorch's transforms."""
    spectrum = torch.fft.rfft(x, norm="forward")
    modes = min(weight.shape[1], spectrum.shape[-1])
    out = torch.zeros_like(spectrum)
    out[..., :modes] = spectrum[..., :modes] * torch.view_as_complex(weight)[:, :modes]
    return torch.fft.irfft(out, n=x.shape[-1], norm="forward") + bias


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 10, 100, 101])
@pytest.mark.parametrize("modes", [1, 5, 33])
def test_convolution_is_that_of_the_fast_transform(frames: int, modes: int) -> None:
    layer = moved(FourierConvolution(3, modes)).double()
    x = torch.randn(2, 3, frames, dtype=torch.float64)
    torch.testing.assert_close(layer(x), spectral(x, layer.weight, layer.bias))


def test_operator_follows_the_formula_block_by_block() -> None:
    operator = moved(FourierOperator(6, 10, modes=4, depth=2)).double()
    weights = operator.state_dict()

    def mlp(x: Tensor, name: str) -> Tensor:
        for place in range(2):
            x = F.conv1d(
                x if place == 0 else F.gelu(x),
                weights[f"{name}.fcs.{place}.weight"],
                weights[f"{name}.fcs.{place}.bias"],
            )
        return x

    x = torch.randn(2, 6, 21, dtype=torch.float64)
    place = (torch.arange(21, dtype=torch.float64) / 21).expand(2, 1, 21)
    expected = mlp(torch.cat((x, place), 1), "lifting")
    for block in range(2):
        name = f"fno_blocks.{{}}.{block}"
        convolved = spectral(
            expected, weights[name.format("convs") + ".weight"], weights[name.format("convs") + ".bias"]
        )
        convolved = convolved + F.conv1d(expected, weights[name.format("fno_skips") + ".conv.weight"])
        gated = weights[name.format("channel_mlp_skips") + ".weight"] * expected
        expected = mlp(F.gelu(convolved) if block == 0 else convolved, name.format("channel_mlp")) + gated
        expected = F.gelu(expected) if block == 0 else expected
    torch.testing.assert_close(operator(x), mlp(expected, "projection"))


def as_published(model: BandSplitRotator) -> dict[str, Any]:
    """Return a state dict with complex weights and the description that neuraloperator puts beside them."""
    published: dict[str, Any] = {}
    for key, tensor in model.state_dict().items():
        fourier = ".fno_blocks.convs." in key and key.endswith(".weight")
        published[f"{key}.tensor" if fourier else key] = torch.view_as_complex(tensor) if fourier else tensor
    return {**published, "_metadata": {"n_modes": (8,), "non_linearity": F.gelu, "_version": "0.1.0"}}


def test_a_checkpoint_with_complex_weights_is_recognised_and_loaded(tmp_path: Path) -> None:
    model = moved(BandSplitRotator(**ARGUMENTS))
    torch.save(as_published(model), tmp_path / "model.ckpt")
    # As MSST counts, in a configuration that says nothing of the heads.
    stated = {name: TINY[name] for name in TINY if name != "mlp_expansion_factor"} | {"mask_estimator_depth": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = from_checkpoint(tmp_path / "model.ckpt", stated)
    assert (loaded.configuration["mask_fno_modes"], loaded.configuration["mask_fno_depth"]) == (5, 3)
    audio = torch.randn(1, 1, 500)
    with torch.no_grad():
        torch.testing.assert_close(loaded(audio), model(audio), rtol=0, atol=0)
    for suffix in (".ckpt", ".safetensors"):
        save_checkpoint(tmp_path / f"own{suffix}", loaded)
        with torch.no_grad():
            torch.testing.assert_close(from_checkpoint(tmp_path / f"own{suffix}")(audio), model(audio), rtol=0, atol=0)
    names = {"training": {"instruments": ["a", "b"]}}
    with pytest.raises(CheckpointError, match="mask_fno_modes"):
        save_checkpoint(tmp_path / "pair.ckpt", loaded, configuration=names, layout="msst")


@pytest.mark.parametrize("switch", [{"fno": True}, {"use_fno": True}, {"fno": {"enabled": True}}])
def test_a_configuration_that_switches_the_head_on_gets_the_published_one(switch: dict[str, Any]) -> None:
    model = {name: TINY[name] for name in TINY if name != "mlp_expansion_factor"}
    with torch.device("meta"):
        assert from_configuration({"model": model | switch}).configuration["mask_fno_modes"] == 33
        off = from_configuration({"model": model | dict.fromkeys(switch, False)})
    assert off.configuration["mask_fno_modes"] == 0
