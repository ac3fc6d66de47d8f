"""Mel-Band RoFormer by its own name."""

from __future__ import annotations

from typing import Unpack

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.theTypes import ParametersBandSplitRotator


class MelBandRoformer(BandSplitRotator):
    """`BandSplitRotator` with 60 overlapping mel bands at 44.1 kHz, as in Mel-Band RoFormer [1]_.

    Arguments, state dict and outputs are those of `BandSplitRotator`; the four defaults in the signature differ.

    References
    ----------
    .. [1] Wang et al., Mel-RoFormer for Vocal Separation and Vocal Melody Transcription, ISMIR 2024, arXiv 2409.04702.
    """

    def __init__(
        self,
        dim: int,
        *,
        attn_dropout: float = 0.1,
        ff_dropout: float = 0.1,
        num_bands: int | None = 60,
        sample_rate: float | None = 44100,
        **parameters: Unpack[ParametersBandSplitRotator],
    ) -> None:
        super().__init__(
            dim,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
            num_bands=num_bands,
            sample_rate=sample_rate,
            **parameters,
        )
