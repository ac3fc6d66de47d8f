"""The name that `hunterFormsBS.attend` had, for this part, in version 0.3."""

import warnings

from hunterFormsBS.attend import FeedForward as FeedForward
from hunterFormsBS.attend import Transformer as Transformer

warnings.warn(
    "hunterFormsBS.transform is the name of version 0.3: import FeedForward and Transformer from hunterFormsBS.attend.",
    DeprecationWarning,
    stacklevel=2,
)
