"""Merge low-rank adapters into the checkpoint that they were trained on.

    python examples/merge_lora.py --checkpoint vocals.ckpt --lora runs/first/best.lora --output better.ckpt

What it writes needs no other file: `python -m hunterFormsBS SONG --checkpoint better.ckpt --output DIR`. To hear the
adapters there is no need to merge them: `--checkpoint vocals.ckpt --lora runs/first/best.lora` does so in memory.

Needs `python -m pip install -e ".[separation]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hunterFormsBS.training.adapters import merge_adapters


def main() -> None:
    """Merge as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="what the adapters were trained on")
    parser.add_argument("--configuration", type=Path, help="of the checkpoint, if it does not hold its own")
    parser.add_argument("--lora", type=Path, required=True, help="what peft saved, a folder, or MSST's file of loralib")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    help_stems = "keep the checkpoint's stems that the adapters lack, before new ones (default: the adapters' stems)"
    parser.add_argument("--keep-stems", action="store_true", help=help_stems)
    arguments = parser.parse_args()
    stems = merge_adapters(
        arguments.checkpoint,
        arguments.lora,
        arguments.output,
        arguments.configuration,
        keep_stems=arguments.keep_stems,
    )
    named = f" ({', '.join(stems)})" if stems else ""
    print(f"{arguments.output}{named}: {arguments.checkpoint} with {arguments.lora} merged into it")


if __name__ == "__main__":
    from endings import run

    run(main)
