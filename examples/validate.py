"""Measure how well a checkpoint separates songs whose stems are known.

    python examples/validate.py --checkpoint model.ckpt --songs data/test --stems vocals drums --output scores.csv

A song is a folder with a file for each stem. What is not stated comes from the configuration: of `--configuration`, or
within the checkpoint. Processes that `--devices 4` or torchrun starts share the songs out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.engine import launched, make_fabric
from training.metrics import NAMES
from training.segments import find_songs
from training.settings import Settings
from training.validation import DTYPES, means, score_songs, write_table

from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.checkpoint.byName import find_configuration
from hunterFormsBS.parametersSeparation import ParametersSeparation


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--configuration", type=Path, help="YAML or JSON that belongs to the checkpoint")
    parser.add_argument("--songs", type=Path, required=True, help="folder of songs")
    parser.add_argument("--stems", nargs="+", help="names of the stems, in the order of the model's heads")
    parser.add_argument("--metrics", nargs="+", default=["sdr"], choices=NAMES)
    parser.add_argument("--output", type=Path, help="CSV file with a line for each stem of each song")
    parser.add_argument("--sample-rate", type=int, help="Hz (default: 44100)")
    parser.add_argument("--chunk-size", type=int, help="samples that the model sees at a time")
    parser.add_argument("--num-overlap", type=int, help="chunks that cover each sample")
    parser.add_argument("--precision", default="32-true", choices=sorted(DTYPES))
    parser.add_argument("--accelerator", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--devices", default="auto", help="processes on this machine (default: all GPUs, or 1)")
    return parser.parse_args(arguments)


def settings_of(arguments: argparse.Namespace, configuration: Mapping[str, Any]) -> Settings:
    """Return what the command line says, or else the configuration."""
    training, audio, inference = (configuration.get(name) or {} for name in ("training", "audio", "inference"))
    target = training.get("target_instrument")
    stems = arguments.stems or ([target] if target else training.get("instruments"))
    if not stems:
        sys.exit("the configuration names no stems: name them in --stems, in the order of the model's heads")
    return Settings(
        instruments=tuple(stems),
        sample_rate=arguments.sample_rate or audio.get("sample_rate") or 44100,
        chunk_size=arguments.chunk_size or audio.get("chunk_size") or ParametersSeparation.chunk_size,
        num_steps=1,
        lr=0.0,
        num_overlap=arguments.num_overlap or inference.get("num_overlap") or Settings.num_overlap,
        metrics=tuple(arguments.metrics),
        metric_for_best=arguments.metrics[0],
    )


def main() -> None:
    """Measure."""
    arguments = parse_arguments()
    checkpoint, configuration, content = find_configuration(arguments.checkpoint, arguments.configuration)
    settings = settings_of(arguments, content)
    songs = find_songs(arguments.songs, settings.instruments, settings.sample_rate)
    model = from_checkpoint(checkpoint, configuration)
    heads = model.configuration["num_stems"]
    if heads != len(settings.instruments):
        sys.exit(f"--stems names {len(settings.instruments)} stems, and the model has {heads}: name each of them")
    fabric = make_fabric(
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        num_nodes=1,
        strategy="auto",
        precision="32-true",
        use_amp=False,
    )
    with launched(fabric):
        table = score_songs(fabric, model.to(fabric.device), songs, settings, DTYPES[arguments.precision])
    if not fabric.is_global_zero:
        return
    if arguments.output is not None:
        write_table(arguments.output, table, settings.metrics)
    for metric in settings.metrics:
        print(f"{metric}: " + ", ".join(f"{stem} {score:.2f}" for stem, score in means(table, metric).items()))


if __name__ == "__main__":
    from endings import run

    run(main)
