"""Train a model on a folder of songs with stems.

    python examples/train.py --configuration examples/train.yaml --songs MUSDB18-HQ --output runs/first

The folder holds `train/SONG/{vocals,drums,bass,other}.wav`, and `test/SONG/…`, if any, to validate on. Give the same
command again to continue a run that was killed. Several GPUs of a machine: `--devices 8`, or `torchrun` in place of
`python`. Weights sharded over them: `--strategy fsdp2`. See docs/training.md.

The loop runs on Lightning Fabric, because its FSDP2 strategy calls a function of ours to shard the model, on a CPU
too: all transformers of an axis share a position embedding, which automatic wrapping cannot give an owner.

Needs `python -m pip install -e ".[train]"`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from hunterFormsBS.training.adapters import add_adapters
from hunterFormsBS.training.datasets import find_data
from hunterFormsBS.training.engine import STRATEGIES, launched, make_fabric
from hunterFormsBS.training.msst import read_last
from hunterFormsBS.training.run import Run
from hunterFormsBS.training.segments import Song, find_songs
from hunterFormsBS.training.settings import Settings, settings_from
from hunterFormsBS.training.starting import describe, freeze, start_from
from hunterFormsBS.training.states import StoppedError, claim

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import read_configuration

REMARKS = 20
"""Remarks on the songs that are printed."""

NAMES_AND_UNITS = {"sdr": ("SDR", " dB"), "si_sdr": ("SI-SDR", " dB"), "museval_sdr": ("SDR of museval", " dB")}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--configuration", type=Path, required=True, help="YAML or JSON; see examples/train.yaml")
    parser.add_argument("--songs", type=Path, help="folder with train/ and, to validate, test/")
    parser.add_argument("--data", type=Path, nargs="+", help="instead: folders or CSV files, see training.dataset_type")
    parser.add_argument("--valid", type=Path, help="with --data: folder of songs to validate on")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; an existing run is continued")
    parser.add_argument("--checkpoint", type=Path, help="start from these weights instead of random ones")
    parser.add_argument(
        "--load-optimizer", action="store_true", help="go on where --checkpoint, MSST's last_*.ckpt, was"
    )
    parser.add_argument("--accelerator", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--devices", default="auto", help="processes on this machine (default: all GPUs, or 1)")
    parser.add_argument("--num-nodes", type=int, default=1, help="machines")
    parser.add_argument("--strategy", default="auto", choices=STRATEGIES, help="fsdp2 shards the weights")
    parsed = parser.parse_args(arguments)
    if (parsed.songs is None) == (parsed.data is None):
        parser.error("give either --songs or --data")
    if parsed.valid is not None and parsed.songs is not None:
        parser.error("--valid belongs to --data: with --songs the songs to validate on are in its folder test")
    if parsed.load_optimizer and parsed.checkpoint is None:
        parser.error("--load-optimizer belongs to --checkpoint: name the last_*.ckpt to go on from")
    return parsed


def build_model(
    configuration: Mapping[str, Any], settings: Settings, checkpoint: Path | None
) -> tuple[BandSplitRotator, Any, str]:
    """Build the model to train, with the adapters that surround it, if any, and say what is trained of it."""
    torch.manual_seed(settings.seed)
    upstream = configuration.get("upstream", "msst" if configuration.get("model") else None)
    model, origin = start_from(checkpoint, configuration, stems=settings.stems, heads=settings.heads, upstream=upstream)
    adapted: Any = None
    if settings.lora is not None:
        adapted = add_adapters(model, settings.lora)
    elif settings.freeze:
        freeze(model, settings.freeze, settings.train)
    return model, adapted, describe(model, origin)


def train(run: Run, songs: Sequence[Song], validation_songs: Sequence[Song], writer: SummaryWriter | None) -> None:
    """Update the weights to the end of the run, logging, validating and saving on the way."""
    settings, fabric = run.settings, run.fabric
    batches = run.batches(songs)
    with tqdm(
        total=settings.updates, initial=run.updates, unit="update", dynamic_ncols=True, disable=writer is None
    ) as bar:
        while run.updates < settings.updates:
            logged = run.update(batches)
            bar.update()
            at_end = run.updates == settings.updates
            if run.updates % settings.log_every == 0 or at_end:
                names, values = list(logged), torch.stack(list(logged.values()))
                reduced: Any = fabric.all_reduce(values, reduce_op="mean")
                means = dict(zip(names, reduced.tolist(), strict=True))
                bar.set_postfix(loss=f"{means['loss/total']:.4f}")
                if writer is not None:
                    for name, value in means.items():
                        writer.add_scalar(name, value, run.updates)
            if run.updates % settings.validation_every == 0 or at_end:
                validate(run, validation_songs, writer, f"after {run.updates} updates")
            if run.updates % settings.checkpoint_every == 0 or at_end:
                if writer is not None:
                    writer.flush()  # what is logged up to a state is on disk when the state is
                run.save()


def validate(run: Run, songs: Sequence[Song], writer: SummaryWriter | None, when: str) -> None:
    """Score the model on whole songs, if there are any, and print the scores."""
    if songs:
        scores = run.validate(songs, writer)
        if writer is not None:
            metric = run.settings.metric_for_best
            name, unit = NAMES_AND_UNITS.get(metric, (metric, ""))
            tqdm.write(f"{name} {when}: " + ", ".join(f"{stem} {score:.2f}{unit}" for stem, score in scores.items()))


def report(remarks: Sequence[str], pathFilename: Path) -> None:
    """Print what is wrong with the songs, or the first of it, and write all of it to a file."""
    if not remarks:
        return
    pathFilename.write_text("".join(f"{remark}\n" for remark in remarks), encoding="utf-8")
    for remark in remarks[:REMARKS]:
        print(f"check: {remark}")
    more = f"the first {REMARKS} above; " if len(remarks) > REMARKS else ""
    print(f"check: {len(remarks)} remarks on the songs, {more}all in {pathFilename}", flush=True)


def main() -> None:
    """Train as the command line says."""
    arguments = parse_arguments()
    configuration = read_configuration(arguments.configuration)
    settings = settings_from(configuration)
    configuration.pop("lora", None)  # not read here, so the checkpoints of this run do not have it
    data = arguments.data or [arguments.songs / "train"]
    songs = find_data(settings.dataset_type, data, settings.instruments, settings.sample_rate)
    validation_folder = arguments.valid or (arguments.songs / "test" if arguments.songs is not None else None)
    validation_songs: list[Song] = []
    if validation_folder is not None and validation_folder.is_dir():
        found = find_songs(validation_folder, settings.instruments, settings.sample_rate)
        validation_songs = found[: settings.validation_songs]

    fabric = make_fabric(
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        num_nodes=arguments.num_nodes,
        strategy=arguments.strategy,
        precision=settings.precision,
        use_amp=settings.use_amp,
    )
    with launched(fabric):
        lock = claim(fabric, arguments.output)
        model, adapted, description = build_model(configuration, settings, arguments.checkpoint)
        run = Run(fabric, model, settings, configuration, arguments.output, adapted)
        resumed = run.resume()
        if arguments.load_optimizer and not resumed:
            run.take_over(read_last(arguments.checkpoint, model))
        writer: SummaryWriter | None = None
        if fabric.is_global_zero:
            # What a killed process logged after the state it left is taken back.
            writer = SummaryWriter(
                str(arguments.output / "tensorboard"), purge_step=run.updates + 1 if resumed else None
            )
            print(description)
            trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            print(
                f"{len(songs)} songs to train on, {len(validation_songs)} to validate on, {trained:,} parameters, "
                f"{fabric.world_size} processes on {fabric.device.type}, {run.precision}; "
                f"{'continuing after' if run.updates else 'starting at'} update {run.updates} of {settings.updates}",
                flush=True,
            )
        remarks = run.prepare([*songs, *validation_songs])
        if writer is not None:
            report(remarks, arguments.output / "check.txt")
        if arguments.checkpoint is not None and not resumed:
            validate(run, validation_songs, writer, "before")
        train(run, songs, validation_songs, writer)
        if writer is not None:
            writer.close()
        if lock is not None:
            lock.close()


if __name__ == "__main__":
    from endings import run

    run(main, StoppedError)
