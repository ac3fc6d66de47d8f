"""Training: datasets, losses, metrics, optimizers, averaged weights, and the run that puts them together.

    from hunterFormsBS.training.trainer import train
    from hunterFormsBS.training.losses import Losses

Each module can be used by itself, in a loop of one's own. The rest of the package imports nothing of it but the
program's subcommands. The extra `train` has what it needs.
"""
