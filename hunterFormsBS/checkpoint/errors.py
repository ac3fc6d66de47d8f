"""The error that files and settings raise which cannot be used."""


class CheckpointError(ValueError):
    """A file or a mapping that cannot be used as a checkpoint or as a configuration."""
