"""Write a checkpoint anew, for this package or for others."""

from __future__ import annotations

import argparse
from pathlib import Path

from hunterFormsBS.choices import DTYPES, LAYOUTS
from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.program.parsing import add_advanced_group
from hunterFormsBS.program.values import add_upstream, names

EXAMPLES = """\
  hunterforms convert mine.ckpt --layout msst --output published/mine.ckpt
      writes published/mine.ckpt and published/mine.yaml, for MSST, UVR, audio-separator and pymss

  hunterforms convert model.ckpt --configuration model.yaml --output model.safetensors
      writes one file that holds its configuration, and runs nothing when it is loaded

  hunterforms convert bs_roformer-unwa-revive --dtype float16 --output revive.ckpt
      fetches a checkpoint by its name, and writes it in half the size
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("checkpoint", metavar="INPUT", help="a file, a name of the catalogue, or hub:OWNER/REPOSITORY/FILE")
    add("--output", required=True, type=Path, metavar="FILE", help="a name that ends in .safetensors, or .ckpt")
    add("--configuration", type=Path, metavar="FILE", help="the YAML or JSON file that came with the checkpoint")
    add(
        "--layout",
        choices=LAYOUTS,
        default="hunterFormsBS",
        help="msst: weights alone, and a .yaml of the same name; hunterFormsBS: one file with its configuration",
    )
    add(
        "--stems",
        type=names,
        metavar="NAMES",
        help="names of the stems, where no configuration has them: vocals,drums",
    )
    add("--dtype", choices=DTYPES, default="float32", help="of the weights (default: float32)")
    add("--overwrite", action="store_true", help="replace files that exist")
    add_upstream(add_advanced_group(parser, "how it is read"))


def run(options: argparse.Namespace, console: Console) -> int:
    """Write the checkpoint, and print the names of the files."""
    if options.output.suffix.lower() in (".yaml", ".yml", ".json"):
        raise UsageError(f"--output {options.output} is the name of a configuration: name the file of weights")
    from hunterFormsBS.checkpoint.rewriting import Options, rewrite

    for path in rewrite(Options(**vars(options))):
        console.show(path)
    return 0
