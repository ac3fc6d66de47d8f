"""The name that `hunterFormsBS.bandSplit` had, for this part, in version 0.3."""

import warnings

from hunterFormsBS.bandSplit import lossComputation as lossComputation

warnings.warn(
    "hunterFormsBS.loss is the name of version 0.3: import lossComputation from hunterFormsBS.bandSplit.",
    DeprecationWarning,
    stacklevel=2,
)
