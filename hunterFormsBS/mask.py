"""The name that `hunterFormsBS.bandSplit` had, for this part, in version 0.3."""

import warnings

from hunterFormsBS.bandSplit import MLP as MLP
from hunterFormsBS.bandSplit import MaskEstimator as MaskEstimator

warnings.warn(
    "hunterFormsBS.mask is the name of version 0.3: import MLP and MaskEstimator from hunterFormsBS.bandSplit.",
    DeprecationWarning,
    stacklevel=2,
)
