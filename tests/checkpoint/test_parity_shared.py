"""Reference vectors of upstream models, through `from_checkpoint`, with nothing but weights and upstream's arguments.

The folder is `HUNTERFORMSBS_PARITY`, or `shared/parity` beside the checkout. With `-s` each file's worst relative
difference is printed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hunterFormsBS.checkpoint import from_checkpoint, infer_configuration
from hunterFormsBS.kernels.seam import reference

FOLDER = Path(os.environ.get("HUNTERFORMSBS_PARITY") or Path(__file__).resolve().parents[3] / "shared" / "parity")
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
LIMIT, LIMIT_OF_LOSS = 1e-5, 1e-4

# Keys of 0.4 are those of Music-Source-Separation-Training, which zeroes the lowest bin unless told otherwise.
NAMED_UPSTREAM = {"lucidrains_040_bs": "lucidrains"}

pytestmark = pytest.mark.skipif(not NAMES, reason=f"no reference vectors at {FOLDER}: set HUNTERFORMSBS_PARITY")
each_vector = pytest.mark.parametrize("name", NAMES or ["none"])


def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return a vector's description, its tensors, and its state dict."""
    description: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(FOLDER / f"{name}.safetensors")
    prefix = "state_dict."
    state_dict = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return description, tensors, state_dict


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


@each_vector
@pytest.mark.parametrize("surroundings", [nullcontext, reference], ids=["kernels", "reference"])
def test_estimates_loss_and_gradient_agree_with_upstream(
    name: str, surroundings: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    with surroundings():
        check_agreement(name, tmp_path)


def check_agreement(name: str, tmp_path: Path) -> None:
    differences = worst_differences(name, tmp_path)
    print(f"\n{name}: {', '.join(f'{key} {difference:.1e}' for key, difference in differences.items())}")
    assert differences.pop("audio") <= LIMIT
    assert max(differences.values(), default=0.0) <= LIMIT_OF_LOSS


def worst_differences(name: str, folder: Path) -> dict[str, float]:
    """Return relative differences of the estimates, the loss, its terms, and the norm of the gradient."""
    description, tensors, state_dict = read(name)
    checkpoint = folder / "model.ckpt"
    torch.save(state_dict, checkpoint)

    upstream: Any = NAMED_UPSTREAM.get(name)
    model = from_checkpoint(checkpoint, description["upstream_arguments"], upstream=upstream)
    stems = description["active_stem_ids"]
    with torch.no_grad():
        recon_audio = model(tensors["raw_audio"], active_stem_ids=stems)
    differences = {"audio": relative_difference(recon_audio, tensors["recon_audio"])}
    if "loss" in tensors:
        loss, terms = model(tensors["raw_audio"], tensors["target"], stems, return_loss_breakdown=True)
        loss.backward()
        gradients = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        values = {
            "loss": loss.detach(),
            "loss_waveform": terms[0].detach(),
            "loss_multi_stft": terms[1].detach(),
            "grad_norm": torch.stack(gradients).norm(),
        }
        differences |= {key: relative_difference(value, tensors[key].squeeze()) for key, value in values.items()}
    return differences


@each_vector
def test_shapes_alone_tell_what_the_arguments_state(name: str) -> None:
    description, _, state_dict = read(name)
    stated = description["upstream_arguments"]
    inferred = infer_configuration(state_dict).arguments
    told_by_shapes = {
        "depth",
        "dim",
        "dim_head",
        "freq_transformer_depth",
        "heads",
        "linear_transformer_depth",
        "mlp_expansion_factor",
        "num_residual_fracs",
        "num_residual_streams",
        "num_stems",
        "stereo",
        "time_transformer_depth",
        "use_pope",
    }
    told = {argument: value for argument, value in stated.items() if argument in told_by_shapes}
    assert {argument: inferred[argument] for argument in told} == told
    counted_from_one = description["family"] == "bs"
    assert inferred["mask_estimator_depth"] == stated["mask_estimator_depth"] - counted_from_one
    assert inferred["final_norm"] is counted_from_one
    if "freq_range" not in stated:
        assert inferred["stft_n_fft"] == stated["stft_n_fft"]
    if "freqs_per_bands" in stated:
        assert inferred["freqs_per_bands"] == tuple(stated["freqs_per_bands"])
