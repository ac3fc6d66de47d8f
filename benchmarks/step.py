"""Measure what each part of the training example takes of a step, from the data to the averaged weights."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.loading import STEMS, write_songs
from benchmarks.measure import Summary, summary, synchronize
from benchmarks.models import SAMPLE_RATE, TINY
from benchmarks.report import Report, argument_parser
from hunterFormsBS import bandSplitRotator
from hunterFormsBS.training.engine import make_fabric
from hunterFormsBS.training.run import Run
from hunterFormsBS.training.sections import settings_from
from hunterFormsBS.training.truth import find_songs

MODEL = ("forward", "loss", "backward")
OTHERS = ("data", "norm of the gradient", "optimizer", "averaging", "everything else")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    options = _options(argv)
    report = Report(options)
    with TemporaryDirectory() as folder:
        seconds = measure(configuration(options), Path(folder), options.accelerator, options.rounds)
    total = summary([sum(step) for step in zip(*seconds.values(), strict=True)])
    rows = [_row(name, summary(seconds[name]), total) for name in (*MODEL, *OTHERS)]
    outside = summary([sum(step) for step in zip(*(seconds[name] for name in OTHERS), strict=True)])
    rows += [_row("all but the model", outside, total), _row("step", total, total)]
    title = f"Step of dim {options.dim}, depth {options.depth}, {options.seconds:g} s, batch {options.batch}"
    report.table(title, rows, seconds)
    report.finish()


def _row(name: str, seconds: Summary, total: Summary) -> dict[str, object]:
    return {"part": name, "s": f"{seconds.median:.4f}", "share": f"{100 * seconds.median / total.median:.1f} %"}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("step", __doc__ or "", rounds=5)
    parser.add_argument("--dim", type=int, default=256, help="of the model (default %(default)s)")
    parser.add_argument("--depth", type=int, default=6, help="of the model (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a segment (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="segments (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read (default %(default)s)")
    parser.add_argument("--optimizer", default="adamw", help="see docs/training.md (default %(default)s)")
    parser.add_argument("--accelerator", default="cpu", choices=("cpu", "cuda", "mps"), help="(default %(default)s)")
    options = parser.parse_args(argv)
    if options.tiny:
        options.dim, options.depth, options.seconds = TINY.dim, TINY.depth, 0.2
    return options


def configuration(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `hunterforms train` would be given: mel bands, four stems, augmentations by gain and remixing."""
    return {
        "audio": {"sample_rate": SAMPLE_RATE, "chunk_size": round(options.seconds * SAMPLE_RATE)},
        "model": {
            "dim": options.dim,
            "depth": options.depth,
            "stereo": True,
            "num_stems": len(STEMS),
            "time_transformer_depth": 1,
            "freq_transformer_depth": 1,
            "num_bands": 60,
            "sample_rate": SAMPLE_RATE,
            "stft_hop_length": 441,
        },
        "training": {
            "instruments": list(STEMS),
            "batch_size": options.batch,
            "num_steps": options.rounds + 2,
            "optimizer": options.optimizer,
            "lr": 1e-4,
            "weight_decay": 0.01,
            "grad_clip": 1.0,
            "num_workers": options.workers,
            "remix": 0.5,
        },
        "augmentations": {"loudness": True, "loudness_min": 0.5, "loudness_max": 1.5},
    }


class Clock:
    """Seconds of each part of each step.

    Parameters
    ----------
    device : torch.device
        It is waited for before and after each part.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and takes the time, less that of timed functions that it calls."""

        @wraps(function)
        def run(*arguments: Any, **keywords: Any) -> Any:
            synchronize(self.device)
            start, before, self.inside = time.perf_counter(), self.inside, 0.0
            try:
                return function(*arguments, **keywords)
            finally:
                synchronize(self.device)
                taken = time.perf_counter() - start
                self.seconds[part] += taken - self.inside
                self.inside = before + taken

        return run


def measure(settings: dict[str, Any], folder: Path, accelerator: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each part in each step, after two steps that are not measured."""
    fabric = make_fabric(
        accelerator=accelerator, devices="1", num_nodes=1, strategy="auto", precision=None, use_amp=True
    )
    torch.manual_seed(0)
    model = bandSplitRotator.BandSplitRotator(**settings["model"])
    run = Run(fabric, model, settings_from(settings), settings, folder / "run")
    write_songs(folder / "songs", "wav", 2, max(20.0, 2 * run.settings.chunk_size / SAMPLE_RATE))
    batches: Any = run.batches(find_songs(folder / "songs", STEMS, SAMPLE_RATE))
    clock = Clock(fabric.device)

    def read() -> Iterator[Any]:
        following = clock.timed("data", lambda: fabric.to_device(next(batches)))
        while True:
            yield following()

    for target, name, part in (
        (run, "loss_terms", "forward"),
        (fabric, "backward", "backward"),
        (run, "clip", "norm of the gradient"),
        (run.optimizer, "step", "optimizer"),
        (run.average, "update", "averaging"),
    ):
        setattr(target, name, clock.timed(part, getattr(target, name)))
    compute = bandSplitRotator.lossComputation
    bandSplitRotator.lossComputation = clock.timed("loss", compute)
    try:
        update, data = clock.timed("everything else", run.update), read()
        seconds: dict[str, list[float]] = {name: [] for name in (*MODEL, *OTHERS)}
        for step in range(rounds + 2):
            clock.seconds.clear()
            update(data)
            for name, values in seconds.items():
                if step >= 2:
                    values.append(clock.seconds[name])
    finally:
        bandSplitRotator.lossComputation = compute
    return seconds


if __name__ == "__main__":
    main()
