"""Turn the last state of a run into one that Music-Source-Separation-Training goes on from.

    python examples/to_msst.py --run runs/first --output results/last_bs_roformer.ckpt

There: `--start_check_point results/last_bs_roformer.ckpt --config_path results/last_bs_roformer.yaml --load_optimizer
--load_epoch`. The other way: `hunterforms train --checkpoint results/last_bs_roformer.ckpt --load-optimizer …`.

Needs `python -m pip install -e ".[train]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hunterFormsBS.training.msst import convert_run


def main() -> None:
    """Convert as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="what --output was in training")
    parser.add_argument(
        "--output", type=Path, required=True, help="the checkpoint to write, its configuration beside it"
    )
    arguments = parser.parse_args()
    updates, epochs = convert_run(arguments.run, arguments.output)
    print(f"{arguments.output}: the state after {updates} updates, which are {epochs} whole epochs")


if __name__ == "__main__":
    from endings import run

    run(main)
