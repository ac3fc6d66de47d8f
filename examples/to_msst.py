"""Turn the last state of a run into one that Music-Source-Separation-Training goes on from.

    python examples/to_msst.py --run runs/first --output results/last_bs_roformer.ckpt

There: `--start_check_point results/last_bs_roformer.ckpt --config_path results/last_bs_roformer.yaml --load_optimizer
--load_epoch`. The other way: `examples/train.py --checkpoint results/last_bs_roformer.ckpt --load-optimizer …`.

Needs `python -m pip install -e ".[train]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from hunterFormsBS.training.msst import write_last
from hunterFormsBS.training.settings import settings_from
from hunterFormsBS.training.states import newest_state

from hunterFormsBS.checkpoint import from_checkpoint


def main() -> None:
    """Convert as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="what --output was in training")
    parser.add_argument(
        "--output", type=Path, required=True, help="the checkpoint to write, its configuration beside it"
    )
    arguments = parser.parse_args()
    path = newest_state(arguments.run)
    if path is None:
        raise ValueError(f"{arguments.run / 'resume'} has no state: choose the folder of another run")
    last = arguments.run / "last.ckpt"
    if not last.is_file():
        raise ValueError(f"{last} is not there: a run with adapters goes on in this program only")
    configuration = torch.load(last, weights_only=True)["configuration"]
    settings = settings_from(configuration)
    state = torch.load(path, weights_only=True)
    model = from_checkpoint(last)
    model.load_state_dict(state["model"])
    progress = state["progress"]
    epochs = progress["updates"] * settings.gradient_accumulation_steps // settings.num_steps
    write_last(
        arguments.output,
        model,
        state["optimizer"],
        name=settings.optimizer,
        epochs=epochs,
        best=progress["best"],
        configuration={name: section for name, section in configuration.items() if name != "model"},
    )
    print(f"{arguments.output}: the state after {progress['updates']} updates, which are {epochs} whole epochs")


if __name__ == "__main__":
    from endings import run

    run(main)
