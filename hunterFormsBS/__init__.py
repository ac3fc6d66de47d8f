"""Music source separation with band-split rotary transformers."""

from hunterFormsBS.bandSplitRotator import BandSplitRotator as BandSplitRotator
