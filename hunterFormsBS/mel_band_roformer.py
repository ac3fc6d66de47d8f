"""Mel-Band RoFormer under upstream's class name."""

from __future__ import annotations

from functools import partial
from typing import Any, Self, Unpack

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint.configuration import translate_arguments
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.families import newest_family
from hunterFormsBS.options import ParametersOfEveryLayout
from hunterFormsBS.signature import explained


class MelBandRoformer(BandSplitRotator):
    """`BandSplitRotator` with 60 overlapping mel bands at 44.1 kHz, as in Mel-Band RoFormer [1]_.

    Arguments, state dict and outputs are those of `BandSplitRotator`; four defaults differ: `attn_dropout`,
    `ff_dropout`, `num_bands` and `sample_rate`.

    References
    ----------
    .. [1] Wang et al., Mel-RoFormer for Vocal Separation and Vocal Melody Transcription, ISMIR 2024, arXiv 2409.04702.
    """

    @partial(explained, further=BandSplitRotator.__init__)
    def __init__(
        self,
        dim: int,
        *,
        attn_dropout: float = 0.1,
        ff_dropout: float = 0.1,
        num_bands: int | None = 60,
        sample_rate: float | None = 44100,
        **parameters: Unpack[ParametersOfEveryLayout],
    ) -> None:
        super().__init__(
            dim,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
            num_bands=num_bands,
            sample_rate=sample_rate,
            **parameters,
        )

    @classmethod
    def from_msst(cls, **section: Any) -> Self:
        """Build the model from the section `model` of a configuration of Music-Source-Separation-Training.

        Parameters
        ----------
        **section : Any
            Arguments with the names and defaults of that project's `MelBandRoformer`: its `zero_dc` is true by default.

        Raises
        ------
        CheckpointError
            For an unknown argument, with the nearest known name, or for an argument of a BS-RoFormer.
        """
        if section.get("freqs_per_bands") is not None:
            raise CheckpointError("freqs_per_bands is of a BS-RoFormer: use BSRoformer.from_msst")
        family = newest_family("msst", overlapping=True)
        arguments: dict[str, Any] = {**family.defaults, **translate_arguments(section, family).arguments}
        return cls(**arguments)
