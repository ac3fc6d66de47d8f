"""Compare hunterFormsBS with BS-RoFormer and pymss-core: equal weights, equal outputs, one process, paired rounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from benchmarks.measure import Job, kernel_share, paired_times, peak_memory, ratios, summary
from benchmarks.models import (
    LAYOUTS,
    OURS,
    PACKAGES,
    REFERENCE,
    TINY,
    Package,
    Setting,
    disagreement,
    inference,
    matched,
    noise,
    peers_quiet,
    require,
    stems_of_noise,
    training,
)
from benchmarks.report import Report, Row, argument_parser, mebibytes, quotient

LIMITS = {"inference": 1e-4, "training": 1e-4}
"""How far outputs, and losses, may be apart, relatively, for a comparison to mean anything."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison that the command line asks for."""
    options = _options(argv)
    require(options.packages)
    report = Report(options)
    with peers_quiet():
        _compare(options, report)
    report.finish()


def _compare(options: argparse.Namespace, report: Report) -> None:
    settings = [replace(options.setting, layout=layout, stems=n) for layout in options.layouts for n in options.stems]
    for work in options.work:
        seconds = options.seconds if work == "inference" else options.training_seconds
        packages = [p for p in options.packages if work == "inference" or p != "pymss-core"]  # It cannot train.
        if "time" in options.measure:
            rows, numbers = [], []
            for setting in settings:
                row, number = _time(work, setting, packages, seconds, options.rounds)
                rows += row
                numbers.append(number)
            report.table(f"{work.capitalize()}, {seconds:g} s: time", rows, numbers)
        if "memory" in options.measure:
            rows = [row for setting in settings for row in _memory(work, setting, packages, seconds, options.threads)]
            report.table(f"{work.capitalize()}, {seconds:g} s: peak memory", rows)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("compare", __doc__ or "", rounds=5)
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES), help="what to compare")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--stems", nargs="+", type=int, default=[1, 4], help="numbers of stems (default 1 4)")
    parser.add_argument("--work", nargs="+", choices=("inference", "training"), default=["inference", "training"])
    parser.add_argument("--measure", nargs="+", choices=("time", "memory"), default=["time", "memory"])
    parser.add_argument("--seconds", type=float, default=4.0, help="audio for inference (default 4)")
    parser.add_argument("--training-seconds", type=float, default=2.0, help="audio for training (default 2)")
    options = parser.parse_args(argv)
    options.setting = Setting()
    if options.tiny:
        options.setting, options.seconds, options.training_seconds = TINY, 0.2, 0.2
    return options


def _time(
    work: str, setting: Setting, packages: Sequence[Package], seconds: float, rounds: int
) -> tuple[list[Row], dict[str, object]]:
    models = matched(packages, setting)
    audio = noise(seconds)
    target = stems_of_noise(seconds, setting.stems)
    functions: dict[Package, Callable[[], Tensor]] = {
        package: inference(model, audio) if work == "inference" else training(model, audio, target)
        for package, model in models.items()
    }
    apart = disagreement({package: function() for package, function in functions.items()})
    if apart > LIMITS[work]:
        raise RuntimeError(f"Outputs differ by {apart:.1e} of their peak, so their times cannot be compared: {setting}")
    times = paired_times(functions, rounds)
    shares = {package: kernel_share(function) for package, function in functions.items()}
    rows: list[Row] = [
        {
            "layout": setting.layout,
            "stems": setting.stems,
            "package": package,
            "median s": f"{summary(times[package]).median:.3f}",
            **{f"÷ {to}": ratios(times, package, to) if to != package else None for to in packages if to != OURS},
            "kernels": f"{shares[package]:.0%}",
            "floor s": f"{shares[package] * summary(times[package]).median:.3f}",
            "apart": f"{apart:.0e}",
        }
        for package in packages
    ]
    return rows, {"setting": str(setting), "seconds": times, "shares": shares, "apart": apart}


def _memory(
    work: str, setting: Setting, packages: Sequence[Package], seconds: float, threads: int
) -> list[dict[str, object]]:
    job = Job(setting, seconds, work=work, threads=threads)
    peaks = {str(package): peak_memory(replace(job, package=package)) for package in packages}
    if work == "training" and OURS in packages:
        checkpointed = replace(job, setting=setting.with_extra(use_torch_checkpoint=True))
        peaks[f"{OURS}, use_torch_checkpoint"] = peak_memory(checkpointed)
    return [
        {
            "layout": setting.layout,
            "stems": setting.stems,
            "package": name,
            "peak MiB": mebibytes(peak),
            f"÷ {REFERENCE}": quotient(peak, peaks.get(REFERENCE)) if name != REFERENCE else None,
        }
        for name, peak in peaks.items()
    ]


if __name__ == "__main__":
    main()
