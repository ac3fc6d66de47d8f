"""Measure how well a checkpoint separates songs whose stems are known: what `hunterforms validate` does.

    python examples/validate.py --checkpoint model.ckpt --songs data/test --stems vocals drums --output scores.csv

Needs `python -m pip install -e ".[train]"`.
"""

from __future__ import annotations

import argparse

from hunterFormsBS.console import Console
from hunterFormsBS.program.commands import validate


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    validate.add_arguments(parser)
    validate.run(parser.parse_args(), Console("validate.py"))


if __name__ == "__main__":
    from endings import run

    run(main)
