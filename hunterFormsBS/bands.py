"""The name that `hunterFormsBS.bandSplit` had, for this part, in version 0.3."""

import warnings

from hunterFormsBS.bandSplit import DEFAULT_FREQS_PER_BANDS as DEFAULT_FREQS_PER_BANDS
from hunterFormsBS.bandSplit import BandSplit as BandSplit

warnings.warn(
    "hunterFormsBS.bands is the name of version 0.3: import BandSplit and DEFAULT_FREQS_PER_BANDS from "
    "hunterFormsBS.bandSplit.",
    DeprecationWarning,
    stacklevel=2,
)
