"""Merge low-rank adapters into the checkpoint that they were trained on.

    python examples/merge_lora.py --checkpoint vocals.ckpt --lora runs/first/best.lora --output better.ckpt

What it writes needs no other file: `python -m hunterFormsBS SONG --checkpoint better.ckpt --output DIR`. To hear the
adapters there is no need to merge them: `--checkpoint vocals.ckpt --lora runs/first/best.lora` does so in memory.

Needs `python -m pip install -e ".[separation,lora]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from hunterFormsBS.checkpoint import from_checkpoint, read_configuration, save_checkpoint
from hunterFormsBS.checkpoint.adapters import merge_adapters


def main() -> None:
    """Merge as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="what the adapters were trained on")
    parser.add_argument("--configuration", type=Path, help="of the checkpoint, if it does not hold its own")
    parser.add_argument("--lora", type=Path, required=True, help="folder with adapter_config.json")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    arguments = parser.parse_args()
    configuration = None if arguments.configuration is None else read_configuration(arguments.configuration)
    merged = merge_adapters(from_checkpoint(arguments.checkpoint, configuration), arguments.lora)
    sections = dict(configuration or sections_within(arguments.checkpoint))
    for name in ("model", "upstream"):
        sections.pop(name, None)
    save_checkpoint(arguments.output, merged, configuration=sections)
    print(f"{arguments.output}: {arguments.checkpoint} with {arguments.lora} merged into it")


def sections_within(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint of this package says of its stems, its sample rate and so on."""
    if checkpoint.suffix == ".safetensors":
        return {}
    return dict(torch.load(checkpoint, weights_only=True).get("configuration") or {})


if __name__ == "__main__":
    from endings import run

    run(main)
