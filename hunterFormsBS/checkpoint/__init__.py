"""Checkpoints and configurations of every upstream family, read into `BandSplitRotator`."""

from hunterFormsBS.checkpoint.byName import from_checkpoint
from hunterFormsBS.checkpoint.configurationFile import read_configuration
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.loading import from_configuration, read_state_dict
from hunterFormsBS.checkpoint.saving import save_checkpoint
from hunterFormsBS.checkpoint.stateDict import InferredConfiguration, infer_configuration, translate_state_dict

__all__ = [
    "CheckpointError",
    "InferredConfiguration",
    "from_checkpoint",
    "from_configuration",
    "infer_configuration",
    "read_configuration",
    "read_state_dict",
    "save_checkpoint",
    "translate_state_dict",
]
