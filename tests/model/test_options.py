"""Architecture options in every combination: gradients reach all parameters, checkpointing changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.attend import Attend
from hunterFormsBS.theTypes import FlashAttentionConfig

Build = Callable[..., BandSplitRotator]

SMALLEST: dict[str, Any] = {
    "dim": 4,
    "heads": 2,
    "dim_head": 2,
    "ff_mult": 1,
    "mlp_expansion_factor": 1,
    "stft_n_fft": 8,
    "stft_win_length": 8,
    "stft_hop_length": 4,
    "dim_freqs_in": 5,
    "multi_stft_resolutions_window_sizes": (8,),
}
LAYOUTS: list[dict[str, Any]] = [
    {"freqs_per_bands": (2, 3)},
    {"mask_filter_bank": torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)},
]
MIXES: dict[str, dict[str, Any]] = {
    "": {},
    "learned": {"use_value_residual_learning": True},
    "half": {"use_value_residual_learning": True, "learned_value_residual_mix": False},
    "swapped": {"use_value_residual_learning": True, "learned_value_residual_mix": "swapped"},
    "swapped everywhere": {"use_value_residual_learning": True, "learned_value_residual_mix": "swapped_everywhere"},
}
STREAMS: dict[str, dict[str, Any]] = {
    "": {},
    "streams": {"num_residual_streams": 2},
    "fracs": {"num_residual_fracs": 2},
    "streams fracs": {"num_residual_streams": 2, "num_residual_fracs": 2},
    "mhc": {"num_residual_streams": 2, "num_residual_fracs": 2, "mc_hyper_conn_sinkhorn_iters": 2},
}
SWITCHES: list[dict[str, dict[str, Any]]] = [
    {"": {}, "pope": {"use_pope": True}},
    {"": {}, "linear": {"linear_transformer_depth": 1}},
    {"": {}, "skip": {"skip_connection": True}},
]


def combinations() -> list[Any]:
    """Return every combination of the above, with one layout and the other in turn."""
    params: list[Any] = []
    for index, choice in enumerate(product(*(axis.items() for axis in (MIXES, STREAMS, *SWITCHES)))):
        options: dict[str, Any] = dict(LAYOUTS[index.bit_count() % 2])
        for _, part in choice:
            options |= part
        params.append(pytest.param(options, id=", ".join(name for name, _ in choice if name) or "plain"))
    return params


def loss_and_gradients(
    model: BandSplitRotator, audio: Tensor, target: Tensor
) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    loss = model(audio, target)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("options", combinations())
def test_gradients_reach_every_parameter_with_and_without_checkpointing(
    options: dict[str, Any], tiny_model: Build, randomise: Callable[[nn.Module], None]
) -> None:
    model = tiny_model(**SMALLEST, **options)
    randomise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("pope_embed.bias"):
                parameter.copy_(-parameter.abs())  # above 0 it is clamped, and has no gradient
    audio, target = torch.randn(2, 1, 20), torch.randn(2, 1, 1, 20)
    loss, grads = loss_and_gradients(model, audio, target)
    without = [name for name, grad in grads.items() if grad is None or not grad.any() or not grad.isfinite().all()]
    assert not without
    checkpointing = tiny_model(**SMALLEST, **options, use_torch_checkpoint=True)
    checkpointing.load_state_dict(model.state_dict())
    assert_same(loss_and_gradients(checkpointing, audio, target), (loss, grads))


def assert_same(actual: Any, expected: Any) -> None:
    assert torch.equal(actual[0], expected[0])
    assert actual[1].keys() == expected[1].keys()
    assert [name for name in expected[1] if not torch.equal(actual[1][name], expected[1][name])] == []


def test_checkpointing_covers_band_split_transformers_and_mask_estimators(
    tiny_model: Build,
) -> None:
    ran: dict[str, int] = {}
    model = tiny_model(use_torch_checkpoint=True, num_stems=2, linear_transformer_depth=1)
    watched = {
        "band_split": model.band_split.to_features[0],
        "linear": model.layers[0][0].layers[0][0],  # type: ignore[index]
        "time": model.layers[1][1].layers[0][0],  # type: ignore[index]
        "frequency": model.layers[1][2].layers[0][0],  # type: ignore[index]
        "first mask": model.mask_estimators[0].to_freqs[0],  # type: ignore[index, union-attr]
        "second mask": model.mask_estimators[1].to_freqs[0],  # type: ignore[index, union-attr]
    }
    for name, module in watched.items():

        def count(*_: Any, name: str = name) -> None:
            ran[name] = ran.get(name, 0) + 1

        module.register_forward_hook(count)
    audio, target = torch.randn(1, 1, 40), torch.randn(1, 2, 1, 40)
    loss = model(audio, target)
    assert ran == dict.fromkeys(watched, 1)
    loss.backward()
    assert ran == dict.fromkeys(watched, 2)
    with torch.no_grad():
        model(audio)
    assert ran == dict.fromkeys(watched, 3)


def test_checkpointing_repeats_dropout(tiny_model: Build) -> None:
    results = []
    for use_torch_checkpoint in (False, True):
        torch.manual_seed(6)
        model = tiny_model(attn_dropout=0.3, ff_dropout=0.3, use_torch_checkpoint=use_torch_checkpoint)
        results.append(loss_and_gradients(model, torch.randn(2, 1, 40), torch.randn(2, 1, 1, 40)))
    assert_same(*results)


# Every argument does something

ALTERNATIVES: dict[str, Any] = {
    "dim": 18,
    "depth": 3,
    "dim_head": 2,
    "heads": 3,
    "ff_mult": 2,
    "final_norm": False,
    "freq_range": (0, 33),
    "freq_transformer_depth": 2,
    "freqs_per_bands": (3, 3, 3, 3, 3, 18),
    "linear_transformer_depth": 1,
    "mask_estimator_depth": 2,
    "mask_filter_bank": torch.ones(1, 33, dtype=torch.bool),
    "match_input_audio_length": False,
    "mlp_expansion_factor": 3,
    "multi_stft_hop_size": 10,
    "multi_stft_normalized": True,
    "multi_stft_resolution_loss_weight": 0.5,
    "multi_stft_resolutions_window_sizes": (64,),
    "multi_stft_window_fn": torch.hamming_window,
    "norm_output": True,
    "num_residual_fracs": 2,
    "num_residual_streams": 2,
    "num_stems": 2,
    "scale": 2.0,
    "skip_connection": True,
    "stereo": True,
    "stft_hop_length": 8,
    "stft_win_length": 48,
    "stft_window_fn": torch.hamming_window,
    "time_transformer_depth": 2,
    "use_pope": True,
    "use_value_residual_learning": True,
    "zero_dc": False,
}
# These need another argument beside them, or show elsewhere; the tests named watch them.
ELSEWHERE = {
    "attn_dropout": "test_dropout_is_active_in_training_only",
    "ff_dropout": "test_dropout_is_active_in_training_only",
    "flash_attn": "test_kernel_choice_reaches_every_softmax_attention",
    "sage_attention": "test_kernel_choice_reaches_every_softmax_attention",
    "learned_value_residual_mix": "test_kinds_of_value_residual_differ",
    "mc_hyper_conn_sinkhorn_iters": "test_sinkhorn_iterations_change_the_output",
    "dim_freqs_in": "test_refusals.py",
    "stft_normalized": "test_spectrum.py",  # the norms of the band split take a factor away
    "stft_n_fft": "test_transform_size_decides_the_number_of_bins",
    "sample_rate": "test_sample_rate_and_num_bands_make_a_mel_layout",
    "num_bands": "test_sample_rate_and_num_bands_make_a_mel_layout",
    "use_torch_checkpoint": "test_checkpointing_covers_band_split_transformers_and_mask_estimators",
}
OF_VARIANTS = {
    "conv_expansion_factor",
    "conv_kernel_size",
    "freq_conformer_depth",
    "mask_fno_depth",
    "mask_fno_modes",
    "mask_transformer_depth",
    "mask_transformer_dim_head",
    "mask_transformer_heads",
    "residual_in_first_group_only",
    "segm_backbone_channels",
    "segm_base_depth",
    "segm_hyperace_k",
    "segm_hyperace_l",
    "segm_num_heads",
    "segm_num_hyperedges",
    "n_wsa_sinks",
    "segm_version",
    "siamese",
    "time_conformer_depth",
    "use_hyperACE",
    "use_rotary_pos",
    "use_shared_bias",
    "wsa_window_len",
}
"""These belong to other heads and layers: `test_variants.py` watches them."""


def behaviour(model: BandSplitRotator) -> tuple[Any, ...]:
    """Return shapes of parameters, and, with parameters that depend on nothing but their shape, output and loss."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).sin().view_as(parameter))
    torch.manual_seed(7)
    audio, target = (
        torch.randn(1, model.audio_channels, 101),
        torch.randn(1, model.num_stems, model.audio_channels, 101),
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return shapes, model(audio).tolist(), model(audio, target).item()


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_argument_changes_the_model_or_its_output_or_its_loss(name: str, tiny_model: Build) -> None:
    base = behaviour(tiny_model())
    if name == "freq_range":  # a range of all bins is no change; half of the last band is
        changed = tiny_model(freq_range=(0, 27), freqs_per_bands=(2, 3, 4, 5, 7, 6))
    else:
        changed = tiny_model(**{name: ALTERNATIVES[name]})
    assert behaviour(changed) != base


def test_list_of_arguments_above_is_complete() -> None:
    names = set(inspect.signature(BandSplitRotator).parameters)
    assert names == {*ALTERNATIVES, *ELSEWHERE, *OF_VARIANTS}


@pytest.mark.parametrize("name", ["attn_dropout", "ff_dropout"])
@pytest.mark.parametrize("linear", [0, 1])
def test_dropout_is_active_in_training_only(name: str, linear: int, tiny_model: Build) -> None:
    model, audio = tiny_model(**{name: 0.5}, linear_transformer_depth=linear), torch.randn(1, 1, 50)
    assert not torch.equal(model(audio), model(audio))
    other = tiny_model(linear_transformer_depth=linear)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(audio), other(audio))


@pytest.mark.parametrize(
    ("flash_attn", "sage_attention"),
    [(True, False), (False, False), (FlashAttentionConfig(True, True, False), False), (True, True)],
)
def test_kernel_choice_reaches_every_softmax_attention(
    flash_attn: Any, sage_attention: bool, tiny_model: Build
) -> None:
    model = tiny_model(flash_attn=flash_attn, sage_attention=sage_attention)
    settings = [(m.flash_attn, m.sage_attention) for m in model.modules() if isinstance(m, Attend)]
    assert settings == [(flash_attn, sage_attention)] * 4


def test_kernels_give_the_same_output(tiny_model: Build) -> None:
    audio, outputs = torch.randn(1, 1, 80), []
    for flash_attn in (True, False, FlashAttentionConfig(False, True, False)):
        torch.manual_seed(8)
        outputs.append(tiny_model(flash_attn=flash_attn, use_pope=True)(audio))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])


def test_kinds_of_value_residual_differ(tiny_model: Build) -> None:
    outputs: list[Any] = []
    for learned in (True, None, False, "swapped", "swapped_everywhere"):
        model = tiny_model(
            use_value_residual_learning=True, learned_value_residual_mix=learned, linear_transformer_depth=1
        )
        outputs.append(behaviour(model)[1])
    assert outputs[0] == outputs[1]
    distinct = outputs[1:]
    assert all(distinct[i] != distinct[j] for i in range(4) for j in range(i))


def test_sinkhorn_iterations_change_the_output(tiny_model: Build) -> None:
    one, two, none = (
        behaviour(tiny_model(num_residual_streams=2, mc_hyper_conn_sinkhorn_iters=iterations))
        for iterations in (1, 2, None)
    )
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert none[0] != one[0]


def test_transform_size_decides_the_number_of_bins(tiny_model: Build) -> None:
    model = tiny_model(stft_n_fft=80, dim_freqs_in=41, freqs_per_bands=(20, 21))
    assert model.mask_filter_bank.shape == (2, 41)
    assert model.stft.forward(torch.randn(1, 1, 100)).shape[2] == 41


def test_sample_rate_and_num_bands_make_a_mel_layout(tiny_model: Build) -> None:
    low, high = (tiny_model(num_bands=4, sample_rate=rate).mask_filter_bank for rate in (2000, 44100))
    assert low.shape == high.shape == (4, 33)
    assert not torch.equal(low, high)
