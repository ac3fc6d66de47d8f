"""BS-RoFormer under upstream's class name."""

from __future__ import annotations

from typing import Any, Self

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint.configuration import is_for_mel, translate_arguments
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.families import newest_family


class BSRoformer(BandSplitRotator):
    """`BandSplitRotator` with its defaults: 62 bands that do not overlap, as in BS-RoFormer [1]_.

    Signature, state dict and outputs are those of `BandSplitRotator`.

    References
    ----------
    .. [1] Lu et al., Music Source Separation with Band-Split RoPE Transformer, ICASSP 2024, arXiv 2309.02612.
    """

    @classmethod
    def from_msst(cls, **section: Any) -> Self:
        """Build the model from the section `model` of a configuration of Music-Source-Separation-Training.

        Parameters
        ----------
        **section : Any
            Arguments with the names, counting and defaults of that project's `BSRoformer`: its `mask_estimator_depth`
            is one more than here.

        Raises
        ------
        CheckpointError
            For an unknown argument, with the nearest known name, or for an argument of a Mel-Band RoFormer.
        """
        if is_for_mel(section):
            raise CheckpointError(
                f"num_bands={section.get('num_bands')!r}, sample_rate={section.get('sample_rate')!r}, "
                f"linear_flash_attn={section.get('linear_flash_attn')!r}: a section that states one of them is of a "
                "Mel-Band RoFormer. Use MelBandRoformer.from_msst"
            )
        family = newest_family("msst", overlapping=False)
        arguments: dict[str, Any] = {**family.defaults, **translate_arguments(section, family).arguments}
        return cls(**arguments)
