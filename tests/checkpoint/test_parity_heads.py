"""Reference vectors of published variants, by `from_checkpoint`, with nothing but weights and upstream's arguments.

The folder is `HUNTERFORMSBS_PARITY_HEADS`, or `shared/parity_heads` beside the checkout. With `-s` each vector's worst
relative difference is printed.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hunterFormsBS.checkpoint import from_checkpoint, infer_configuration
from hunterFormsBS.checkpoint.recognition import recognise

FOLDER = Path(
    os.environ.get("HUNTERFORMSBS_PARITY_HEADS") or Path(__file__).resolve().parents[3] / "shared" / "parity_heads"
)
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
LIMIT = 2e-4

VARIANTS = {
    "hyperace_v1": "HyperACE v1",
    "hyperace_v2": "HyperACE v2",
    "large_inst_v2": "BS-RoFormer Large-Inst v2",
    "logic_shared_bias": "RoFormer with shared biases",
    "msst_bs_conformer": "Conformer",
    "msst_mel_conformer": "Conformer",
}

pytestmark = pytest.mark.skipif(not NAMES, reason=f"no reference vectors at {FOLDER}: set HUNTERFORMSBS_PARITY_HEADS")
each_vector = pytest.mark.parametrize("name", NAMES or ["none"])


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any], Tensor, Tensor]:
    """Return a vector's state dict, upstream's arguments, the mixture, and what upstream makes of it."""
    specification = importlib.util.spec_from_file_location("weights", FOLDER / "weights.py")
    assert specification is not None
    assert specification.loader is not None
    weights: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(weights)
    vector: tuple[dict[str, Tensor], dict[str, Any], Tensor, Tensor] = weights.load_vector(name, FOLDER)
    return vector


def worst_difference(name: str, folder: Path) -> float:
    """Return the largest difference of the estimates from upstream's, relative to their peak, in double precision."""
    state_dict, arguments, raw_audio, recon_audio = read(name)
    path = folder / f"{name.removeprefix('msst_')}.ckpt"
    torch.save(state_dict, path)
    options: dict[str, Any] = {"upstream": "msst_experimental"} if "experimental" in name else {}
    # Upstream's mel classes round the length down unless told otherwise.
    options["match_input_audio_length"] = recon_audio.shape[-1] == raw_audio.shape[-1]
    model = from_checkpoint(path, arguments, dtype=torch.float64, **options)
    with torch.no_grad():
        estimates = model(raw_audio.double())
    assert estimates.shape == recon_audio.shape
    return float((estimates - recon_audio).abs().max() / recon_audio.abs().max())


# Its recipe gives every layer another bias.
@pytest.mark.filterwarnings("ignore:the biases of attention differ")
@each_vector
def test_estimates_agree_with_upstream(name: str, tmp_path: Path) -> None:
    worst = worst_difference(name, tmp_path)
    print(f"\n{name}: {worst:.1e}")
    assert worst <= LIMIT


@each_vector
def test_keys_alone_tell_the_variant_and_upstreams_arguments(name: str) -> None:
    state_dict, stated, _, _ = read(name)
    variants = recognise(state_dict).variants
    assert (variants[0].name if variants else None) == VARIANTS.get(name)
    inferred = infer_configuration(state_dict).arguments
    not_told = {"stft_hop_length", "stft_win_length", "zero_dc", "sample_rate", "num_bands", "dim_freqs_in"}
    told = {argument: value for argument, value in stated.items() if argument not in not_told}
    counted_from_one = "mel" not in name or "conformer" in name
    told["mask_estimator_depth"] -= counted_from_one
    if "freqs_per_bands" in told:
        told["freqs_per_bands"] = tuple(told["freqs_per_bands"])
    assert {argument: inferred[argument] for argument in told} == told


@pytest.mark.parametrize("name", [name for name in NAMES if "experimental" in name] or ["none"])
def test_name_of_an_experimental_checkpoint_is_noticed(name: str, tmp_path: Path) -> None:
    state_dict, arguments, _, _ = read(name)
    path = tmp_path / f"{name}.ckpt"
    torch.save(state_dict, path)
    with pytest.warns(UserWarning, match="pass upstream='msst_experimental'"):
        from_checkpoint(path, arguments)


@pytest.mark.filterwarnings("ignore:the biases of attention differ")
@each_vector
def test_parameters_are_in_the_order_of_upstream(name: str, tmp_path: Path) -> None:
    state_dict, arguments, _, _ = read(name)
    order = list(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["shapes"])
    names = {"linear_62_bias_0": "shared_qkv_bias", "linear_64_bias_0": "shared_out_bias"}
    path = tmp_path / "model.ckpt"
    torch.save(state_dict, path)
    mine = list(from_checkpoint(path, arguments).state_dict())
    assert [names.get(key, key) for key in order if "rotary" not in key] == [
        key for key in mine if not key.endswith(("num_batches_tracked", "rotary_embed.freqs"))
    ]
