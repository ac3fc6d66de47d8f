"""BS-RoFormer by its own name."""

from __future__ import annotations

from hunterFormsBS.bandSplitRotator import BandSplitRotator


class BSRoformer(BandSplitRotator):
    """`BandSplitRotator` with its defaults: 62 bands that do not overlap, as in BS-RoFormer [1]_.

    Signature, state dict and outputs are those of `BandSplitRotator`.

    References
    ----------
    .. [1] Lu et al., Music Source Separation with Band-Split RoPE Transformer, ICASSP 2024, arXiv 2309.02612.
    """
