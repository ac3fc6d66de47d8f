"""The error for files and settings that cannot be used."""


class CheckpointError(ValueError):
    """A file or a mapping that cannot be used as a checkpoint or as a configuration."""
