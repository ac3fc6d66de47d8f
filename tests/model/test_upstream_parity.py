"""The same weights in BS-RoFormer from PyPI: the same audio, losses and gradients.

Every parameter is random, also those that start at 0 or 1 upstream, so that nothing cancels.
"""

from __future__ import annotations

import re
from typing import Any

import bs_roformer
import pytest
import torch
from torch import nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.mel_band_roformer import MelBandRoformer

COMMON: dict[str, Any] = {
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "time_transformer_depth": 2,
    "freq_transformer_depth": 1,
    "stft_n_fft": 128,
    "stft_win_length": 128,
    "stft_hop_length": 32,
    "dim_freqs_in": 65,
    # Upstream's Mel models hop by a quarter of the window at least: where that is less than 147 the losses agree.
    "multi_stft_resolutions_window_sizes": (512, 256, 128),
}
BS: dict[str, Any] = {"freqs_per_bands": (1, 2, 5, 9, 17, 31)}
MEL: dict[str, Any] = {"num_bands": 8, "sample_rate": 16000}
UPSTREAM_ONLY: dict[str, Any] = {"flash_attn": False}  # its other path is deprecated in PyTorch

Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # for both, for upstream, for this package

BS_CASES: dict[str, Case] = {
    "plain": ({}, {}, {}),
    "stereo, three stems": ({"stereo": True, "num_stems": 3}, {}, {}),
    "constrained streams": (
        {"num_residual_streams": 4},
        {},
        {"mc_hyper_conn_sinkhorn_iters": 2},
    ),
    "more iterations": ({"num_residual_streams": 2, "mc_hyper_conn_sinkhorn_iters": 5}, {}, {}),
    "streams and fracs": (
        {"num_residual_streams": 2, "num_residual_fracs": 2, "mc_hyper_conn_sinkhorn_iters": 2},
        {},
        {},
    ),
    "fracs": ({"num_residual_fracs": 4, "mc_hyper_conn_sinkhorn_iters": 2}, {}, {}),
    "polar": ({"use_pope": True, "num_residual_streams": 2, "mc_hyper_conn_sinkhorn_iters": 2}, {}, {}),
    "freq_range": ({"freq_range": (4, 50), "freqs_per_bands": (6, 15, 25)}, {}, {}),
    "open freq_range": ({"freq_range": (-1, 50), "freqs_per_bands": (10, 15, 25)}, {}, {}),
    "zero_dc": ({"zero_dc": True, "stft_normalized": True, "multi_stft_normalized": True}, {}, {}),
    "deeper masks": ({}, {"mask_estimator_depth": 3}, {"mask_estimator_depth": 2}),
    "loss settings": (
        {
            "multi_stft_hop_size": 50,
            "multi_stft_resolution_loss_weight": 0.3,
            "multi_stft_window_fn": torch.hamming_window,
        },
        {},
        {},
    ),
    "another window": ({"stft_win_length": 96, "stft_window_fn": torch.hamming_window}, {}, {}),
}
SWAPPED: dict[str, Any] = {"use_value_residual_learning": True, "learned_value_residual_mix": "swapped"}
MEL_CASES: dict[str, Case] = {
    "plain": ({"linear_transformer_depth": 0}, {"add_value_residual": False}, {}),
    "linear": ({"linear_transformer_depth": 2}, {"add_value_residual": False}, {}),
    "value residual": ({"linear_transformer_depth": 0}, {}, SWAPPED),
    "value residual and linear": ({"linear_transformer_depth": 1}, {}, SWAPPED),
    "streams": (
        {"linear_transformer_depth": 1, "num_residual_streams": 3},
        {},
        SWAPPED | {"mc_hyper_conn_sinkhorn_iters": 2},
    ),
    "polar, stereo, two stems, fracs": (
        {"linear_transformer_depth": 1, "use_pope": True, "stereo": True, "num_stems": 2, "num_residual_fracs": 2},
        {},
        SWAPPED | {"mc_hyper_conn_sinkhorn_iters": 2},
    ),
    "zero_dc, input length": (
        {"linear_transformer_depth": 0, "zero_dc": True, "match_input_audio_length": True, "mask_estimator_depth": 2},
        {},
        SWAPPED,
    ),
}


def translated(key: str, first_group: int) -> str:
    """Return this package's key for upstream's."""
    key = re.sub(r"learned_value_residual_mix\.0\.", "to_value_residual_mix.", key)
    return re.sub(r"^layers\.(\d+)\.(\d+)\.", lambda m: f"layers.{m[1]}.{int(m[2]) - first_group}.", key)


def assert_agreement(theirs: nn.Module, mine: BandSplitRotator, first_group: int, has_streams: bool) -> None:
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)

    def translate(key: str) -> str:
        key = translated(key, first_group)
        return key if has_streams else key.replace(".branch.", ".")

    mine.load_state_dict({translate(key): tensor for key, tensor in theirs.state_dict().items()})
    mine, theirs = mine.eval(), theirs.eval()
    audio = torch.randn(2, mine.audio_channels, 900)
    expected = theirs(audio)
    expected = expected[:, None] if expected.ndim == 3 else expected
    actual = mine(audio)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()

    target = torch.randn(2, mine.num_stems, mine.audio_channels, 900)
    target_of_theirs = target[:, 0] if mine.num_stems == 1 else target
    expected_loss, expected_terms = theirs(audio, target=target_of_theirs, return_loss_breakdown=True)
    loss, terms = mine(audio, target, return_loss_breakdown=True)
    torch.testing.assert_close((loss, *terms), (expected_loss, *expected_terms), rtol=1e-4, atol=0)

    expected_loss.backward()
    loss.backward()
    theirs_grads = {translate(key): p.grad for key, p in theirs.named_parameters() if p.requires_grad}
    grads = {key: p.grad for key, p in mine.named_parameters() if p.requires_grad}
    assert grads.keys() == theirs_grads.keys()
    norms = [torch.stack([grad.norm() for grad in some.values()]).norm() for some in (grads, theirs_grads)]  # type: ignore[union-attr]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, theirs_grads[key], rtol=1e-3, atol=1e-4 * float(norms[1]) / 10, msg=key)


@pytest.mark.parametrize("case", BS_CASES)
def test_bs_roformer_agrees(case: str) -> None:
    both, upstream, ours = BS_CASES[case]
    arguments = COMMON | BS | both
    theirs = bs_roformer.BSRoformer(**(UPSTREAM_ONLY | {"num_residual_streams": 1} | arguments | upstream))
    mine = BandSplitRotator(
        **({"zero_dc": False, "match_input_audio_length": False} | arguments | ours), use_value_residual_learning=True
    )
    assert_agreement(theirs, mine, 0, has_streams(mine))


@pytest.mark.parametrize("case", MEL_CASES)
def test_mel_band_roformer_agrees(case: str) -> None:
    both, upstream, ours = MEL_CASES[case]
    arguments = COMMON | MEL | both
    theirs = bs_roformer.MelBandRoformer(**(UPSTREAM_ONLY | {"num_residual_streams": 1} | arguments | upstream))
    mine = MelBandRoformer(**({"match_input_audio_length": False} | arguments | ours))
    assert_agreement(theirs, mine, 0 if arguments["linear_transformer_depth"] else 1, has_streams(mine))


def has_streams(model: BandSplitRotator) -> bool:
    return any(".branch." in key for key in model.state_dict())
