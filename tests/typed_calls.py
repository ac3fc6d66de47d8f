"""What a strict type checker makes of callers' code: checked with mypy, never run."""

from __future__ import annotations

from typing import assert_type

from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.attend import Attend as Attend
from hunterFormsBS.attend import Attention, FeedForward, LinearAttention, Transformer
from hunterFormsBS.bandSplit import DEFAULT_FREQS_PER_BANDS, MLP, BandSplit, MaskEstimator, lossComputation
from hunterFormsBS.bs_roformer import BSRoformer
from hunterFormsBS.mel_band_roformer import MelBandRoformer

EXPORTED = (Attention, FeedForward, LinearAttention, Transformer, MLP, BandSplit, MaskEstimator, lossComputation)
EXPORTED_TOO = (DEFAULT_FREQS_PER_BANDS, MelBandRoformer)


def call(model: BandSplitRotator, x: Tensor, y: Tensor, flag: bool) -> None:
    """Call a model in each way."""
    assert_type(model(x), Tensor)
    assert_type(BSRoformer(64, depth=1)(x), Tensor)
    assert_type(model(x, active_stem_ids=[0]), Tensor)
    assert_type(model(x, y), Tensor)
    assert_type(model(x, y, return_loss_breakdown=True), tuple[Tensor, tuple[Tensor, Tensor]])
    assert_type(model(x, y, return_loss_breakdown=flag), Tensor | tuple[Tensor, tuple[Tensor, Tensor]])
    assert_type(model.forward(x, y, return_loss_breakdown=flag), Tensor | tuple[Tensor, tuple[Tensor, Tensor]])
    assert_type(model.mask_filter_bank, Tensor)
