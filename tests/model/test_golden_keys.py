"""State dicts: their keys and shapes, what they leave out, how they load, and how models are copied.

The golden lists are written out by hand: they are what checkpoints in the world look like, whatever the code says.
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.mel_band_roformer import MelBandRoformer

Build = Callable[..., BandSplitRotator]
Shapes = dict[str, tuple[int, ...]]

# In all of these: dim 8, heads 2, dim_head 4, so 24 = 3 · heads · dim_head, and 32 = ff_mult · dim.
DIM = {"dim": 8, "heads": 2, "dim_head": 4, "depth": 2, "time_transformer_depth": 1, "freq_transformer_depth": 1}

# Bins in each band.
BS_BANDS = [2] * 24 + [4] * 12 + [12] * 8 + [24] * 8 + [48] * 8 + [128, 129]
MEL_BANDS = [
    *(7, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 9, 9, 9, 10, 10, 11, 13, 13, 13, 15, 16, 17),
    *(19, 20, 20, 22, 24, 26, 28, 29, 31, 33, 36, 39, 41, 44, 47, 50, 54, 57, 61, 66, 71, 76, 80, 86, 93),
    *(99, 105, 113, 122, 130),
]
TINY_BANDS = [2, 3, 4, 5, 7, 12]

ATTENTION: Shapes = {
    "rotary_embed.freqs": (2,),
    "norm.gamma": (8,),
    "to_qkv.weight": (24, 8),
    "to_gates.weight": (2, 8),
    "to_gates.bias": (2,),
    "to_out.0.weight": (8, 8),
}
POLAR_ATTENTION: Shapes = {
    "pope_embed.bias": (2, 4),
    "pope_embed.inv_freqs": (4,),
    **{key: shape for key, shape in ATTENTION.items() if key != "rotary_embed.freqs"},
}
LINEAR_ATTENTION: Shapes = {
    "temperature": (2, 1, 1),
    "norm.gamma": (8,),
    "to_qkv.0.weight": (24, 8),
    "to_out.1.weight": (8, 8),
}
MIX: Shapes = {"to_value_residual_mix.weight": (2, 8), "to_value_residual_mix.bias": (2,)}


def with_mix(attention: Shapes) -> Shapes:
    """Put the value residual's mix after the projection to queries, keys and values."""
    parts = [(key, shape, MIX if key.startswith("to_qkv") else {}) for key, shape in attention.items()]
    return {name: size for key, shape, mix in parts for name, size in ({key: shape} | mix).items()}


FEEDFORWARD: Shapes = {
    "net.0.gamma": (8,),
    "net.1.weight": (32, 8),
    "net.1.bias": (32,),
    "net.4.weight": (8, 32),
    "net.4.bias": (8,),
}


def under(prefix: str, *parts: Shapes) -> Shapes:
    return {f"{prefix}.{key}": shape for part in parts for key, shape in part.items()}


def ends(bands: list[int], *, channels: int = 1, stems: int = 1, hidden: tuple[int, ...] = (32,)) -> Shapes:
    """Return band split and mask estimators; a band is 2 · channels numbers wide for each bin."""
    widths = [2 * channels * bins for bins in bands]
    shapes: Shapes = {}
    for band, width in enumerate(widths):
        shapes |= under(f"band_split.to_features.{band}", {"0.gamma": (width,), "1.weight": (8, width), "1.bias": (8,)})
    for stem, (band, width) in product(range(stems), enumerate(widths)):
        for layer, (low, high) in enumerate(pairwise([8, *hidden, 2 * width])):
            prefix = f"mask_estimators.{stem}.to_freqs.{band}.0.{2 * layer}"
            shapes |= under(prefix, {"weight": (high, low), "bias": (high,)})
    return shapes


def layers(*transformers: str, attention: Shapes = ATTENTION, depth: int = 1, norm_output: bool = False) -> Shapes:
    shapes: Shapes = {}
    for transformer in transformers:
        for k in range(depth):
            shapes |= under(f"layers.{transformer}.layers.{k}.0", attention)
            shapes |= under(f"layers.{transformer}.layers.{k}.1", FEEDFORWARD)
        if norm_output:
            shapes |= {f"layers.{transformer}.norm.gamma": (8,)}
    return shapes


def streams(count: int, *, constrained: bool) -> Shapes:
    """Return what the hyper-connections library keeps beside each sublayer, for features of 8 and no fractions."""
    alpha: Shapes = {"static_alpha": (count, count + 1)}
    beta: Shapes = {"static_beta": (count,), "dynamic_beta_fn": (8,)}
    if constrained:
        return {
            **alpha,
            "dynamic_alpha_fn": (1, 8, count + 1),
            "pre_branch_scale": (1,),
            "residual_scale": (1,),
            **beta,
            "h_post_scale": (),
        }
    return {**alpha, "dynamic_alpha_fn": (8, count + 1), "dynamic_alpha_scale": (), **beta, "dynamic_beta_scale": ()}


def wrapped(*transformers: str, beside: Shapes) -> Shapes:
    shapes: Shapes = {}
    for transformer in transformers:
        for sublayer, branch in enumerate((ATTENTION, FEEDFORWARD)):
            inside = under("branch", branch)
            shapes |= under(f"layers.{transformer}.layers.0.{sublayer}", beside, inside, {"norm.gamma": (8,)})
    return shapes


EVERY = ("0.0", "0.1", "1.0", "1.1")
FINAL_NORM: Shapes = {"final_norm.gamma": (8,)}

GOLDEN: dict[str, tuple[dict[str, Any], Shapes]] = {
    "BS-RoFormer defaults": (
        {"time_transformer_depth": 2, "freq_transformer_depth": 2},
        layers(*EVERY, depth=2) | FINAL_NORM | ends(BS_BANDS),
    ),
    "BS-RoFormer, stereo, four stems": (
        {"stereo": True, "num_stems": 4},
        layers(*EVERY) | FINAL_NORM | ends(BS_BANDS, channels=2, stems=4),
    ),
    "Mel-Band RoFormer defaults": (
        {"num_bands": 60, "sample_rate": 44100},
        layers(*EVERY, norm_output=True) | ends(MEL_BANDS),
    ),
    "both norms": (
        {"tiny": True, "norm_output": True, "final_norm": True},
        layers(*EVERY, norm_output=True) | FINAL_NORM | ends(TINY_BANDS),
    ),
    "no norms": ({"tiny": True, "norm_output": False, "final_norm": False}, layers(*EVERY) | ends(TINY_BANDS)),
    "mask estimators of three hidden layers": (
        {"tiny": True, "mask_estimator_depth": 3, "mlp_expansion_factor": 2},
        layers(*EVERY) | FINAL_NORM | ends(TINY_BANDS, hidden=(16, 16, 16)),
    ),
    "polar": (
        {"tiny": True, "use_pope": True},
        layers(*EVERY, attention=POLAR_ATTENTION) | FINAL_NORM | ends(TINY_BANDS),
    ),
    "linear": (
        {"tiny": True, "linear_transformer_depth": 1},
        layers("0.0", attention=LINEAR_ATTENTION)
        | layers("0.1", "0.2")
        | layers("1.0", attention=LINEAR_ATTENTION)
        | layers("1.1", "1.2")
        | FINAL_NORM
        | ends(TINY_BANDS),
    ),
    "value residual": (
        {"tiny": True, "use_value_residual_learning": True, "linear_transformer_depth": 1},
        layers("0.0", attention=LINEAR_ATTENTION)
        | layers("0.1", "0.2")
        | layers("1.0", attention=with_mix(LINEAR_ATTENTION))
        | layers("1.1", "1.2", attention=with_mix(ATTENTION))
        | FINAL_NORM
        | ends(TINY_BANDS),
    ),
    "value residual halfway": (
        {"tiny": True, "use_value_residual_learning": True, "learned_value_residual_mix": False},
        layers(*EVERY) | FINAL_NORM | ends(TINY_BANDS),
    ),
    "streams": (
        {"tiny": True, "num_residual_streams": 4},
        wrapped(*EVERY, beside=streams(4, constrained=False)) | FINAL_NORM | ends(TINY_BANDS),
    ),
    "constrained streams": (
        {"tiny": True, "num_residual_streams": 3, "mc_hyper_conn_sinkhorn_iters": 2},
        wrapped(*EVERY, beside=streams(3, constrained=True)) | FINAL_NORM | ends(TINY_BANDS),
    ),
    "skip connection and checkpointing": (
        {"tiny": True, "skip_connection": True, "use_torch_checkpoint": True},
        layers(*EVERY) | FINAL_NORM | ends(TINY_BANDS),
    ),
    "freq_range": (
        {"tiny": True, "freq_range": (4, 13), "freqs_per_bands": (3, 6)},
        layers(*EVERY) | FINAL_NORM | ends([3, 6]),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_keys_their_order_and_shapes_are_those_of_checkpoints(name: str, tiny_model: Build) -> None:
    arguments, expected = GOLDEN[name]
    arguments = DIM | arguments
    if arguments.pop("tiny", False):
        model = tiny_model(**({"mlp_expansion_factor": 4} | arguments))
    else:
        model = BandSplitRotator(**arguments)
    assert [(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()] == list(expected.items())


# Derived tensors


def test_masks_and_indices_are_in_no_state_dict_and_in_no_buffer_to_be_averaged(tiny_model: Build) -> None:
    model = tiny_model(overlapping=True)
    assert list(model.buffers()) == []
    assert "mask_filter_bank" not in model.state_dict()
    assert model.mask_filter_bank.dtype == torch.bool
    assert model.to("meta").mask_filter_bank.is_meta


@pytest.mark.parametrize("overlapping", [False, True])
def test_model_built_on_the_meta_device_works_once_weights_are_assigned(overlapping: bool, tiny_model: Build) -> None:
    model, audio = tiny_model(overlapping=overlapping), torch.randn(1, 1, 100)
    with torch.device("meta"):
        hollow = tiny_model(overlapping=overlapping)
    assert hollow.band_split.to_features[0][1].weight.is_meta  # type: ignore[index, union-attr]
    hollow.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(hollow(audio), model(audio))


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("use_pope", [False, True])
def test_model_that_was_emptied_works_once_weights_are_loaded(
    overlapping: bool, use_pope: bool, tiny_model: Build
) -> None:
    model, audio = tiny_model(overlapping=overlapping, use_pope=use_pope), torch.randn(1, 1, 100)
    emptied = tiny_model(overlapping=overlapping, use_pope=use_pope).to("meta").to_empty(device="cpu")
    emptied.load_state_dict(model.state_dict())
    assert torch.equal(emptied(audio), model(audio))


# Copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(copied: Callable[[Any], Any], tiny_model: Build) -> None:
    model, audio = tiny_model(use_value_residual_learning=True, overlapping=True), torch.randn(1, 1, 100)
    other = copied(model)
    before = model(audio)
    assert torch.equal(other(audio), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert torch.equal(model(audio), before)
    assert not torch.equal(other(audio), before)


def test_layers_of_an_axis_share_one_embedding_and_axes_do_not() -> None:
    model = BandSplitRotator(**DIM, freqs_per_bands=(1025,))
    embeddings = [[transformer.layers[0][0].rotary_embed for transformer in group] for group in model.layers]  # type: ignore[index, union-attr]
    assert embeddings[0][0] is embeddings[1][0]
    assert embeddings[0][1] is embeddings[1][1]
    assert embeddings[0][0] is not embeddings[0][1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlapping": True, "num_stems": 2, "stereo": True},
        {"num_residual_streams": 2, "mc_hyper_conn_sinkhorn_iters": 2, "skip_connection": True},
        {"use_pope": True, "freq_range": (4, 13), "freqs_per_bands": (3, 6)},
        {"use_value_residual_learning": True, "learned_value_residual_mix": "swapped", "zero_dc": False},
        {"stft_window_fn": torch.hamming_window, "num_bands": 4, "sample_rate": 8000},
    ],
    ids=lambda case: re.sub(r" at 0x\w+", "", str(case)),
)
@pytest.mark.parametrize("kind", [BandSplitRotator, MelBandRoformer])
def test_configuration_rebuilds_the_model(kind: Any, options: Any, tiny_model: Build) -> None:
    model = tiny_model(kind, **({"sample_rate": None, "num_bands": None} | options))
    rebuilt = type(model)(**model.configuration)
    assert type(rebuilt) is kind
    rebuilt.load_state_dict(model.state_dict())
    audio = torch.randn(1, model.audio_channels, 100)
    assert torch.equal(rebuilt.eval()(audio), model.eval()(audio))


# Loading


def test_loading_into_another_mask_estimator_depth_says_which_depth_fits(tiny_model: Build) -> None:
    state_dict = tiny_model(mask_estimator_depth=2).state_dict()
    with pytest.raises(RuntimeError, match=r"mask_estimator_depth=2") as caught:
        tiny_model(mask_estimator_depth=1).load_state_dict(state_dict)
    first_line = str(caught.value).splitlines()[0]
    assert "mask_estimator_depth=2" in first_line
    assert "mask_estimator_depth=1" in first_line
    assert "num_stems" not in first_line
    assert "mlp_expansion_factor" not in first_line
    tiny_model(mask_estimator_depth=2).load_state_dict(state_dict)


@pytest.mark.parametrize(
    ("theirs", "mine", "remedy"),
    [
        ({"num_stems": 4}, {"num_stems": 1}, "num_stems=4"),
        ({"num_stems": 1}, {"num_stems": 2}, "num_stems=1"),
        ({"mlp_expansion_factor": 4}, {"mlp_expansion_factor": 2}, "mlp_expansion_factor=4"),
        ({"mask_estimator_depth": 1}, {"mask_estimator_depth": 3}, "mask_estimator_depth=1"),
        (
            {"mask_estimator_depth": 1, "num_stems": 2, "mlp_expansion_factor": 1},
            {"mask_estimator_depth": 3, "num_stems": 1, "mlp_expansion_factor": 3},
            "mask_estimator_depth=1, num_stems=2, mlp_expansion_factor=1",
        ),
    ],
)
def test_misfit_of_mask_estimators_is_explained_in_the_first_line(
    theirs: Any, mine: Any, remedy: str, tiny_model: Build
) -> None:
    state_dict = tiny_model(**theirs).state_dict()
    with pytest.raises(RuntimeError) as caught:
        tiny_model(**mine).load_state_dict(state_dict)
    first_line = str(caught.value).splitlines()[0]
    assert remedy in first_line
    assert "this one has " + ", ".join(f"{name}={mine[name]}" for name in _names(remedy)) in first_line
    tiny_model(**theirs).load_state_dict(state_dict)


def _names(remedy: str) -> list[str]:
    return [part.split("=")[0] for part in remedy.split(", ")]


def test_another_dim_is_not_blamed_on_the_mask_estimators(tiny_model: Build) -> None:
    state_dict = tiny_model(dim=24).state_dict()
    with pytest.raises(RuntimeError) as caught:
        tiny_model(dim=12).load_state_dict(state_dict)
    assert "mlp_expansion_factor" not in str(caught.value).splitlines()[0]


def test_misfit_inside_a_larger_module_is_explained_too(tiny_model: Build) -> None:
    state_dict = nn.Sequential(tiny_model(num_stems=2)).state_dict()
    with pytest.raises(RuntimeError, match="num_stems=2"):
        nn.Sequential(tiny_model()).load_state_dict(state_dict)


def test_missing_and_unexpected_keys_are_refused(tiny_model: Build) -> None:
    model = tiny_model()
    state_dict = model.state_dict()
    del state_dict["final_norm.gamma"]
    with pytest.raises(RuntimeError, match=r"Missing key.*final_norm\.gamma"):
        model.load_state_dict(state_dict)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*another"):
        model.load_state_dict(model.state_dict() | {"another": torch.zeros(1)})


def test_part_of_a_state_dict_may_be_loaded(tiny_model: Build) -> None:
    model = tiny_model()
    result = model.load_state_dict({"final_norm.gamma": torch.full((12,), 3.0)}, strict=False)
    assert not result.unexpected_keys
    assert model.state_dict()["final_norm.gamma"].eq(3).all()
