"""Score checkpoints on songs with known stems.

A song is a folder with a file for each stem. Settings that are not stated come from `--configuration`, or from the
configuration within the checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from hunterFormsBS.choices import ACCELERATORS, METRICS, PRECISIONS
from hunterFormsBS.console import Console
from hunterFormsBS.program.othersPackages import packages_of_training

EXAMPLES: Final = """\
  hunterforms validate --checkpoint model.ckpt --songs data/test --stems vocals drums --output scores.csv
      prints the mean SDR of each stem, and writes that of each song
  hunterforms validate --checkpoint model.ckpt --songs data/test --metrics sdr si_sdr bleedless fullness --devices 4
      measures more, and shares the songs out among four processes
  hunterforms validate --checkpoint first.ckpt second.ckpt --songs data/test --output scores.parquet
      compares two checkpoints: differences for each stem, their spread over songs, best and worst songs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="files, or names of the catalogue; several are compared, each with the first",
    )
    add(
        "--configuration",
        type=_path_or_none,
        nargs="+",
        default=[None],
        metavar="FILE",
        help="YAML or JSON that belongs to the checkpoint: one for all, or one for each, - for none",
    )
    add(
        "--lora",
        type=_path_or_none,
        nargs="+",
        default=[None],
        metavar="PATH",
        help="low-rank adapters for the checkpoint, as separate takes them: one for all, or one for each, - for none",
    )
    add("--songs", type=Path, required=True, metavar="DIR", help="folder of songs")
    add("--stems", nargs="+", default=[], metavar="NAME", help="names of the stems, in the order of the model's heads")
    add("--metrics", nargs="+", default=["sdr"], choices=METRICS, metavar="NAME", help=f"of {', '.join(METRICS)}")
    add("--output", type=Path, metavar="FILE", help="table with a line for each stem of each song: .csv or .parquet")
    add("--sample-rate", type=int, metavar="HZ", help="(default: 44100)")
    add("--chunk-size", type=int, metavar="N", help="samples that the model sees at a time")
    add("--num-overlap", type=int, metavar="N", help="chunks that cover each sample")
    add("--precision", default="32-true", choices=PRECISIONS, help="precision of the computation (default: 32-true)")
    add("--accelerator", default="auto", choices=ACCELERATORS, help="(default: a GPU if there is one)")
    add("--devices", default="auto", metavar="N", help="processes on this machine (default: all GPUs, or 1)")


def run(options: argparse.Namespace, console: Console) -> int:
    """Score a checkpoint."""
    with packages_of_training("measuring"):
        from hunterFormsBS.training.scores import means
        from hunterFormsBS.training.validation import compare

        comparison = compare(
            options.checkpoint,
            options.songs,
            configurations=options.configuration,
            stems=options.stems,
            metrics=options.metrics,
            output=options.output,
            sample_rate=options.sample_rate,
            chunk_size=options.chunk_size,
            num_overlap=options.num_overlap,
            precision=options.precision,
            accelerator=options.accelerator,
            devices=options.devices,
            lora=options.lora,
            console=console,
        )
    if len(comparison.scores) > 1:
        for line in comparison.describe(options.metrics):
            console.show(line)
        return 0
    for table in comparison.scores.values():
        for metric in options.metrics:
            by_stem = means(table, metric)
            console.show(f"{metric}: " + ", ".join(f"{stem} {score:.2f}" for stem, score in by_stem.items()))
    return 0


def _path_or_none(text: str) -> Path | None:
    """Read a path, or `-` for none."""
    return None if text == "-" else Path(text)
