"""Train a model on a folder of songs with stems: what `hunterforms train` does, as a program of one's own.

    python examples/train.py --configuration examples/train.yaml --songs MUSDB18-HQ --output runs/first

Several GPUs of a machine: `--devices 8`, or `torchrun` in place of `python`. See docs/training.md.

Needs `python -m pip install -e ".[train]"`.
"""

from __future__ import annotations

import argparse

from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.program.commands import train


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    train.add_arguments(parser)
    train.run(parser.parse_args(), Console("train.py"))


if __name__ == "__main__":
    from endings import run

    run(main, RuntimeError, UsageError)
