"""Checkpoints and configurations of every upstream family, read into `BandSplitRotator`.

Names are imported on first use: the catalogue, `facts`, is read without PyTorch.
"""

import typing as _typing

from hunterFormsBS.lazyNames import lazy as _lazy

if _typing.TYPE_CHECKING:
    from hunterFormsBS.checkpoint.byName import from_checkpoint as from_checkpoint
    from hunterFormsBS.checkpoint.configurationFile import read_configuration as read_configuration
    from hunterFormsBS.checkpoint.errors import CheckpointError as CheckpointError
    from hunterFormsBS.checkpoint.loading import from_configuration as from_configuration
    from hunterFormsBS.checkpoint.loading import read_state_dict as read_state_dict
    from hunterFormsBS.checkpoint.saving import save_checkpoint as save_checkpoint
    from hunterFormsBS.checkpoint.stateDict import InferredConfiguration as InferredConfiguration
    from hunterFormsBS.checkpoint.stateDict import infer_configuration as infer_configuration
    from hunterFormsBS.checkpoint.stateDict import translate_state_dict as translate_state_dict

_HOMES = {
    "byName": ("from_checkpoint",),
    "configurationFile": ("read_configuration",),
    "errors": ("CheckpointError",),
    "loading": ("from_configuration", "read_state_dict"),
    "saving": ("save_checkpoint",),
    "stateDict": ("InferredConfiguration", "infer_configuration", "translate_state_dict"),
}
"""The same names for the interpreter, by module. A test compares this with the imports above."""

# Out of the sight of type checkers, for whom a module with `__getattr__` has every name.
if not _typing.TYPE_CHECKING:
    __getattr__, __dir__, __all__ = _lazy(__name__, _HOMES)
