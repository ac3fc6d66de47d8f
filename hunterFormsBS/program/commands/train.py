"""Train a model on a folder of songs with stems.

The folder holds `train/SONG/{vocals,drums,bass,other}.wav`, and `test/SONG/…`, if any, to validate on. Repeat the
command to continue an interrupted run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from hunterFormsBS.choices import ACCELERATORS, STRATEGIES
from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.program.othersPackages import packages_of_training

EXAMPLES: Final = """\
  hunterforms train --configuration train.yaml --songs MUSDB18-HQ --output runs/first
      trains, and continues where it was when the same command is given again
  hunterforms train --configuration train.yaml --songs mine --checkpoint vocals.ckpt --output runs/tuned
      starts from the weights of a checkpoint
  torchrun --nproc-per-node 8 -m hunterFormsBS train --configuration train.yaml --songs mine --output runs/first
      takes eight GPUs, as --devices 8 does; --strategy fsdp2 shards the weights over them
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    add("--configuration", type=Path, required=True, metavar="FILE", help="YAML or JSON; see examples/train.yaml")
    add("--songs", type=Path, metavar="DIR", help="folder with train/ and, for validation, test/")
    add(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="instead of --songs: folders or CSV files, see training.dataset_type",
    )
    add("--valid", type=Path, metavar="DIR", help="with --data: folder of songs to validate on")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the run; an existing run is continued")
    add("--checkpoint", type=Path, metavar="FILE", help="start from these weights instead of random ones")
    add("--load-optimizer", action="store_true", help="continue the run of --checkpoint, MSST's last_*.ckpt")
    add("--accelerator", default="auto", choices=ACCELERATORS, help="(default: a GPU if there is one)")
    add("--devices", default="auto", metavar="N", help="processes on this machine (default: all GPUs, or 1)")
    add("--num-nodes", type=int, default=1, metavar="N", help="machines (default: 1)")
    add("--strategy", default="auto", choices=STRATEGIES, help="fsdp2 shards the weights")


def run(options: argparse.Namespace, console: Console) -> int:
    """Train a model.

    Raises
    ------
    UsageError
        If options contradict each other.
    """
    if (options.songs is None) == (not options.data):
        raise UsageError("give either --songs or --data")
    if options.valid is not None and options.songs is not None:
        raise UsageError("--valid belongs to --data: with --songs the songs to validate on are in its folder test")
    if options.load_optimizer and options.checkpoint is None:
        raise UsageError("--load-optimizer belongs to --checkpoint: name the last_*.ckpt to go on from")

    with packages_of_training("training"):
        from hunterFormsBS.training.trainer import train

        train(
            options.configuration,
            options.output,
            songs=options.songs,
            data=options.data,
            valid=options.valid,
            checkpoint=options.checkpoint,
            load_optimizer=options.load_optimizer,
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            console=console,
        )
    return 0
