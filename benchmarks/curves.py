"""Train the same model with the same data in hunterFormsBS and in BS-RoFormer, and compare the curves of the loss.

Rounding differs between the packages, as it differs between two numbers of threads of one package, and training makes
every difference grow. The curves agree if that between the packages grows no faster.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.measure import ROOT
from benchmarks.models import (
    LAYOUTS,
    OURS,
    REFERENCE,
    SAMPLE_RATE,
    TINY,
    Package,
    Setting,
    matched,
    peers_quiet,
    require,
)
from benchmarks.report import Report, argument_parser

NOTES = tuple(110 * 2 ** (number / 12) for number in range(25))
"""Hz of two octaves."""


@dataclass(frozen=True)
class Curve:
    """The loss of each step of a run.

    Parameters
    ----------
    package : str
    threads : int
    losses : tuple of float
    """

    package: Package
    threads: int
    losses: tuple[float, ...]

    @property
    def name(self) -> str:
        """What it is called in tables and in the picture."""
        return f"{self.package}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def differences(self, other: Curve) -> list[float]:
        """Return how far the losses of each step are apart, relative to those of the other curve."""
        return [abs(mine - theirs) / theirs for mine, theirs in zip(self.losses, other.losses, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the curves of the layouts that the command line asks for."""
    options = _options(argv)
    require([REFERENCE])
    report = Report(options)
    for layout in options.layouts:
        setting = replace(TINY if options.tiny else Setting(dim=64, depth=2, heads=4, dim_head=32), layout=layout)
        setting = replace(setting, stems=2)
        runs: list[tuple[Package, int]] = [(REFERENCE, n) for n in (options.threads, *options.other_threads)]
        curves = train(setting, options.steps, options.seconds, options.lr, [*runs, (OURS, options.threads)])
        torch.set_num_threads(options.threads)
        report.table(
            f"{layout}: {options.steps} steps of Adam, {options.seconds:g} s of 2 stems",
            rows(curves),
            {curve.name: curve.losses for curve in curves},
        )
        if options.picture is not None:
            path = options.picture.with_name(f"{options.picture.stem}-{layout}.png")
            draw(curves, path)
            print(f"Wrote {path}")
    report.finish()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("curves", (__doc__ or "").partition("\n")[0], rounds=1)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="(default both)")
    parser.add_argument("--steps", type=int, default=200, help="updates of the weights (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a segment (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (default %(default)s)")
    parser.add_argument(
        "--other-threads", type=int, nargs="+", default=[1, 3, 4], help="of more runs of BS-RoFormer (default 1 3 4)"
    )
    parser.add_argument(
        "--picture", type=Path, nargs="?", const=ROOT / "docs" / "curves.png", help="draw NAME-LAYOUT.png"
    )
    options = parser.parse_args(argv)
    if options.tiny:
        options.steps, options.seconds = min(options.steps, 8), min(options.seconds, 0.2)
        options.other_threads = options.other_threads[:1]
    return options


def train(setting: Setting, steps: int, seconds: float, lr: float, runs: Sequence[tuple[Package, int]]) -> list[Curve]:
    """Train models of packages, each with a number of threads, from equal weights."""
    curves = []
    with peers_quiet():
        models = matched([REFERENCE, OURS], setting)
        for package, threads in runs:
            torch.set_num_threads(threads)
            curves.append(Curve(package, threads, losses_of(deepcopy(models[package]), setting, steps, seconds, lr)))
    return curves


def losses_of(model: nn.Module, setting: Setting, steps: int, seconds: float, lr: float) -> tuple[float, ...]:
    """Return the loss of each step of a training from the weights that the model has."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for stems in tqdm(segments(setting.stems, seconds, steps), total=steps, unit="step", leave=False, mininterval=5):
        loss = cast(Tensor, model(stems.sum(1), stems))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return tuple(losses)


def segments(stems: int, seconds: float, steps: int, *, batch: int = 1) -> Iterator[Tensor]:
    """Yield batches of stems, `(b, n, s, t)`, the same ones every time: notes of as many instruments."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def note(instrument: int) -> Tensor:
        frequency = NOTES[int(torch.randint(len(NOTES), (), generator=generator))]
        start, decay = uniform(0, 0.5 * seconds), uniform(2, 8)
        harmonics = sum(
            torch.sin(2 * math.pi * number * frequency * t + uniform(0, 6)) / number ** (1 + instrument)
            for number in range(1, 9)
        )
        envelope = torch.where(t < start, 0, torch.exp(-decay * (t - start).clamp(min=0)))
        pan = uniform(0.2, 0.8)
        return torch.stack([pan * harmonics * envelope, (1 - pan) * harmonics * envelope])

    for _ in range(steps):
        chords = [
            [0.2 * note(instrument) + 0.2 * note(instrument) for instrument in range(stems)] for _ in range(batch)
        ]
        yield torch.stack([torch.stack(chord) for chord in chords])


def rows(curves: Sequence[Curve]) -> list[dict[str, object]]:
    """Return a line for each curve but the first: how far it is from that, early and late, and how fast that grows."""
    lines: list[dict[str, object]] = []
    for curve in curves[1:]:
        apart = curve.differences(curves[0])
        tenth = max(1, len(apart) // 10)
        lines.append(
            {
                "run": curve.name,
                "first loss": f"{curve.losses[0]:.4f}",
                "last loss": f"{curve.losses[-1]:.4f}",
                "first tenth, median": f"{statistics.median(apart[:tenth]):.1e}",
                "last tenth, median": f"{statistics.median(apart[-tenth:]):.1e}",
                "largest": f"{max(apart):.1e}",
                "decades in 100 steps": f"{growth(apart):.2f}",
            }
        )
    return lines


def growth(apart: Sequence[float]) -> float:
    """Return by how many powers of ten differences grow in 100 steps, along the line that fits them best."""
    # What is less than half a unit in the last place is not seen.
    logarithms = [math.log10(max(each, 2**-24)) for each in apart]
    return 100 * statistics.linear_regression(range(len(apart)), logarithms).slope


def draw(curves: Sequence[Curve], pathFilename: Path) -> None:
    """Draw the losses, and their differences from those of the first curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, len(curves[0].losses) + 1)
    # Wide lines below narrow ones: all of them are seen where they lie on one another.
    widths = [4.0, *[2.5] * (len(curves) - 2), 1.0]
    for number, (curve, width) in enumerate(zip(curves, widths, strict=True)):
        color = "black" if curve.package == OURS else f"C{number}"
        left.plot(steps, curve.losses, linewidth=width, color=color, label=curve.name)
        if number:
            right.semilogy(steps, curve.differences(curves[0]), ".", color=color, markersize=3, label=curve.name)
    left.set(title="loss", xlabel="step", xlim=(0, None))
    right.set(title=f"difference from {curves[0].name}, relative", xlabel="step", xlim=(0, None))
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    figure.savefig(pathFilename, dpi=80)


if __name__ == "__main__":
    main()
