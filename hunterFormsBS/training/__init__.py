"""Training: datasets, losses, metrics, optimizers, averaged weights, and the run that puts them together.

    from hunterFormsBS.training.trainer import train
    from hunterFormsBS.training.losses import Losses

Each module also works in your own loop. Of the rest of the package only subcommands import these modules. They need the
extra `train`.
"""
