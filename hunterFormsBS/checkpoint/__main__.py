"""Write a checkpoint anew, for this package or for others: `python -m hunterFormsBS.checkpoint --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, cast, get_args

import torch

from hunterFormsBS.checkpoint import byName, from_checkpoint
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.families import Upstream
from hunterFormsBS.checkpoint.saving import Layout, save_checkpoint
from hunterFormsBS.console import Console, one_line

PROGRAM: Final = "hunterFormsBS.checkpoint"
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INTERRUPTED: Final = 130  # What shells report for a program that SIGINT ended.

FAILURES: Final = (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""Everything that bad files and settings raise. What is not here is a bug, and shows its traceback."""

EPILOG: Final = """\
examples:
  python -m hunterFormsBS.checkpoint mine.ckpt --layout msst --output published/mine.ckpt
      writes published/mine.ckpt and published/mine.yaml, for MSST, UVR, audio-separator and pymss

  python -m hunterFormsBS.checkpoint model.ckpt --configuration model.yaml --output model.safetensors
      writes one file that holds its configuration, and runs nothing when it is loaded

  python -m hunterFormsBS.checkpoint bs_roformer-unwa-revive --dtype float16 --output revive.ckpt
      fetches a checkpoint by its name, and writes it in half the size

exit status: 0 it is written; 1 it is not, and one line says why; 2 the command line cannot be used;
130 interrupted with Ctrl-C.
"""


class _Options(argparse.Namespace):
    checkpoint: str
    configuration: Path | None
    upstream: Upstream | None
    output: Path
    layout: Layout
    stems: list[str] | None
    dtype: str
    overwrite: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print the message in one line and exit with status 2."""
        Console(PROGRAM).tell(f"error: {message} (--help explains the options)")
        self.exit(2)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    reader = _Parser(
        prog=f"python -m {PROGRAM}",
        description="Read a RoFormer checkpoint of any program, and write it for this package or for others.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = reader.add_argument
    add("checkpoint", metavar="INPUT", help="a file, a name of the catalogue, or hub:OWNER/REPOSITORY/FILE")
    add("--output", required=True, type=Path, metavar="FILE", help="a name that ends in .safetensors, or .ckpt")
    add("--configuration", type=Path, metavar="FILE", help="the YAML or JSON file that came with the checkpoint")
    add(
        "--upstream",
        choices=get_args(Upstream),
        help="project whose convention the configuration follows (default: recognised from the checkpoint)",
    )
    add(
        "--layout",
        choices=get_args(Layout),
        default="hunterFormsBS",
        help="msst: weights alone, and a .yaml of the same name; hunterFormsBS: one file with its configuration",
    )
    add(
        "--stems",
        type=_names,
        metavar="NAMES",
        help="names of the stems, where no configuration has them: vocals,drums",
    )
    add("--dtype", choices=tuple(DTYPES), default="float32", help="of the weights (default: float32)")
    add("--overwrite", action="store_true", help="replace files that exist")
    return reader


def main(argv: Sequence[str] | None = None) -> int:
    """Write the checkpoint that the arguments name.

    Parameters
    ----------
    argv : Sequence[str] | None = None
        Arguments without the program's name. `None`: those of the process.

    Returns
    -------
    status : int
        0, 1 or 130, as `--help` says.

    Raises
    ------
    SystemExit
        With 2 if the arguments cannot be used, with 0 after `--help`.
    """
    reader = parser()
    options = reader.parse_args(argv, _Options())
    if options.output.suffix.lower() in (".yaml", ".yml", ".json"):
        reader.error(f"--output {options.output} is the name of a configuration: name the file of weights")
    console = Console(PROGRAM)
    with console.showing_warnings():
        try:
            for path in _write(options):
                console.show(path)
        except KeyboardInterrupt:
            console.tell("interrupted")
            return INTERRUPTED
        except FAILURES as error:
            console.tell(f"error: {one_line(error)}")
            return 1
    return 0


def _write(options: _Options) -> list[Path]:
    files = [options.output, *([options.output.with_suffix(".yaml")] if options.layout == "msst" else [])]
    existing = [str(path) for path in files if path.exists()]
    if existing and not options.overwrite:
        raise CheckpointError(f"{' and '.join(existing)} would be replaced: pass --overwrite, or another --output")
    path, configuration, whole = byName.find_configuration(options.checkpoint, options.configuration)
    model = from_checkpoint(path, configuration, upstream=options.upstream, dtype=DTYPES[options.dtype])
    sections = {
        name: whole[name] for name in ("audio", "training", "inference") if isinstance(whole.get(name), Mapping)
    }
    if options.stems:
        if len(options.stems) != model.num_stems:
            raise CheckpointError(f"--stems names {len(options.stems)}, and the model has {model.num_stems} stems")
        training = {**cast("Mapping[str, Any]", sections.get("training") or {}), "instruments": options.stems}
        training.pop("target_instrument", None)
        sections["training"] = training
    save_checkpoint(options.output, model, configuration=sections, layout=options.layout)
    return files


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names with commas between them, but is {text!r}")
    return names


if __name__ == "__main__":
    sys.exit(main())
