"""Convert a checkpoint for this package or others, or to ONNX."""

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

  hunterforms convert base.ckpt --lora runs/first/best.lora --output better.ckpt
      merges low-rank adapters into the checkpoint that they were trained on

  hunterforms convert runs/first --layout msst --output results/last_bs_roformer.ckpt
      writes the last state of a run of `hunterforms train`, optimizer included, for MSST to go on from

  hunterforms convert model.ckpt --output model.onnx
      exports mask estimation, for runtimes that are not PyTorch, and compares the two
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="INPUT",
        help="a file, a name of the catalogue, hub:OWNER/REPOSITORY/FILE, or the folder of a run",
    )
    add("--output", required=True, type=Path, metavar="FILE", help="file that ends in .safetensors, .ckpt or .onnx")
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
        help="names of the stems if no configuration has them: vocals,drums",
    )
    add("--dtype", choices=DTYPES, default="float32", help="of the weights (default: float32)")
    add("--lora", type=Path, metavar="PATH", help="merge these adapters: a folder of peft, or MSST's file of loralib")
    add(
        "--keep-stems",
        action="store_true",
        help="with --lora: keep the checkpoint's stems that the adapters lack, before new ones",
    )
    add("--overwrite", action="store_true", help="replace files that exist")
    add_upstream(add_advanced_group(parser, "how it is read"))


def run(options: argparse.Namespace, console: Console) -> int:
    """Write the checkpoint, and print the names of the files."""
    suffix = options.output.suffix.lower()
    if suffix in (".yaml", ".yml", ".json"):
        raise UsageError(f"--output {options.output} is the name of a configuration: name the file of weights")
    if Path(options.checkpoint).is_dir():
        return _convert_run(options, console)
    if suffix == ".onnx" and (options.layout == "msst" or options.dtype != "float32"):
        raise UsageError("--layout and --dtype are for checkpoints: an ONNX file is in float32, and holds its settings")
    from hunterFormsBS.checkpoint.rewriting import Options, rewrite

    for path in rewrite(Options(**vars(options))):
        console.show(path)
    return 0


def _convert_run(options: argparse.Namespace, console: Console) -> int:
    """Write the state of a run for Music-Source-Separation-Training."""
    if options.layout != "msst":
        raise IsADirectoryError(
            f"{options.checkpoint} is not a checkpoint: it is a folder. Name one of its checkpoints, or pass "
            "--layout msst for a state of training that MSST goes on from"
        )
    names = ("configuration", "upstream", "stems", "lora", "keep_stems")
    given = [name for name in names if getattr(options, name)] + ["dtype"] * (options.dtype != "float32")
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is for checkpoints, and {options.checkpoint} is the folder of a run"
        )
    from hunterFormsBS.checkpoint.rewriting import refuse_to_replace
    from hunterFormsBS.training.msst import convert_run

    files = [options.output, options.output.with_suffix(".yaml")]
    refuse_to_replace(files, overwrite=options.overwrite)
    updates, epochs = convert_run(Path(options.checkpoint), options.output)
    for path in files:
        console.show(path)
    console.remark(f"the state after {updates} updates, which are {epochs} whole epochs")
    return 0
