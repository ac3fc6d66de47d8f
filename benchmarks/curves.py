"""Train the same model with the same data in hunterFormsBS and in BS-RoFormer, and compare the curves of the loss.

Rounding differs between the packages, as it differs between two numbers of threads of one package, and training makes
every difference grow. The curves agree if that between the packages grows no faster. How large it is at first depends
on how many operations are done in another order: few with other threads, so that a third run of BS-RoFormer starts from
weights of which the last bits are changed.
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
    plain_state_dict,
    require,
)
from benchmarks.report import Report, argument_parser

NOTES = tuple(110 * 2 ** (number / 12) for number in range(25))
"""Hz of two octaves."""


@dataclass(frozen=True)
class Attempt:
    """One training.

    Parameters
    ----------
    package : str
    threads : int
    changed : bool
        Whether it starts from weights of which the last bit is changed.
    """

    package: Package
    threads: int
    changed: bool = False

    def __str__(self) -> str:
        """Write what it is called in tables and in the picture."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.package}, {threads}{', last bits changed' if self.changed else ''}"


@dataclass(frozen=True)
class Curve:
    """What a training gave.

    Parameters
    ----------
    name : str
    losses : tuple of float
        Of each step.
    weights : tuple of Tensor
        All weights after the first step and after the last.
    """

    name: str
    losses: tuple[float, ...]
    weights: tuple[Tensor, Tensor]

    def differences(self, other: Curve) -> list[float]:
        """Return how far the losses of each step are apart, relative to those of the other curve."""
        return [abs(mine - theirs) / theirs for mine, theirs in zip(self.losses, other.losses, strict=True)]

    def distances(self, other: Curve) -> tuple[float, float]:
        """Return how far the weights are apart after the first step and after the last, relative to their norm."""
        first, last = (
            float((mine - theirs).norm() / theirs.norm())
            for mine, theirs in zip(self.weights, other.weights, strict=True)
        )
        return first, last


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the curves of the layouts that the command line asks for."""
    options = _options(argv)
    require([REFERENCE])
    report = Report(options)
    for layout in options.layouts:
        setting = replace(TINY if options.tiny else Setting(dim=64, depth=2, heads=4, dim_head=32), layout=layout)
        setting = replace(setting, stems=2)
        attempts = [
            Attempt(REFERENCE, options.threads),
            *(Attempt(REFERENCE, number) for number in options.other_threads),
            Attempt(REFERENCE, options.threads, changed=True),
            Attempt(OURS, options.threads),
        ]
        curves = train(setting, options.steps, options.seconds, options.lr, attempts)
        torch.set_num_threads(options.threads)
        report.table(
            f"{layout}: {options.steps} steps of Adam, {options.seconds:g} s of 2 stems",
            rows(curves),
            {curve.name: {"losses": curve.losses} for curve in curves},
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
        "--other-threads", type=int, nargs="+", default=[1], help="of more runs of BS-RoFormer (default 1)"
    )
    parser.add_argument(
        "--picture", type=Path, nargs="?", const=ROOT / "docs" / "curves.png", help="draw NAME-LAYOUT.png"
    )
    options = parser.parse_args(argv)
    if options.tiny:
        options.steps, options.seconds = min(options.steps, 8), min(options.seconds, 0.2)
        options.other_threads = options.other_threads[:1]
    return options


def train(setting: Setting, steps: int, seconds: float, lr: float, attempts: Sequence[Attempt]) -> list[Curve]:
    """Train models of packages, from equal weights."""
    with peers_quiet():
        models = matched([REFERENCE, OURS], setting)
        return [train_one(models[each.package], setting, steps, seconds, lr, each) for each in attempts]


def train_one(start: nn.Module, setting: Setting, steps: int, seconds: float, lr: float, attempt: Attempt) -> Curve:
    """Train a copy of a model."""
    torch.set_num_threads(attempt.threads)
    model = deepcopy(start).train()
    if attempt.changed:
        change_last_bits(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses: list[float] = []
    weights: list[Tensor] = []
    for stems in tqdm(segments(setting.stems, seconds, steps), str(attempt), steps, unit="step", mininterval=5):
        loss = cast(Tensor, model(stems.sum(1), stems))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
        if len(losses) in (1, steps):
            weights.append(weights_of(model, setting))
    return Curve(str(attempt), tuple(losses), (weights[0], weights[-1]))


def weights_of(model: nn.Module, setting: Setting) -> Tensor:
    """Return all weights in one vector, in the same order for every package."""
    weights = plain_state_dict({name: each.detach() for name, each in model.named_parameters()}, setting.layout)
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def change_last_bits(model: nn.Module) -> None:
    """Make each weight the next larger or smaller number, by chance."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            where = torch.where(torch.rand(parameter.shape, generator=generator) < 0.5, -torch.inf, torch.inf)
            parameter.copy_(torch.nextafter(parameter, where))


def segments(stems: int, seconds: float, steps: int) -> Iterator[Tensor]:
    """Yield batches of one segment, `(b, n, s, t)`, the same ones every time: notes of as many instruments."""
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
        yield torch.stack([0.2 * note(instrument) + 0.2 * note(instrument) for instrument in range(stems)])[None]


def rows(curves: Sequence[Curve]) -> list[dict[str, object]]:
    """Return a line for each curve but the first: how far it is from that, and by how much that has grown."""
    lines: list[dict[str, object]] = []
    for curve in curves[1:]:
        apart = curve.differences(curves[0])
        first, last = curve.distances(curves[0])
        lines.append(
            {
                "run": curve.name,
                "last loss": f"{curve.losses[-1]:.4f}",
                "losses apart, median of last tenth": f"{statistics.median(apart[-max(1, len(apart) // 10) :]):.1e}",
                "largest": f"{max(apart):.1e}",
                "weights apart, first step": f"{first:.1e}",
                "last step": f"{last:.1e}",
                "times": None if not first else f"{last / first:.0f}",
            }
        )
    return lines


def draw(curves: Sequence[Curve], pathFilename: Path) -> None:
    """Draw the losses, and their differences from those of the first curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, len(curves[0].losses) + 1)
    # Wide lines below narrow ones: all of them are seen where they lie on one another.
    widths = [4.0, *[2.5] * (len(curves) - 2), 1.0]
    for number, (curve, width) in enumerate(zip(curves, widths, strict=True)):
        color = "black" if curve.name.startswith(OURS) else f"C{number}"
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
