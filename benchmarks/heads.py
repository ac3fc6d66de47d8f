"""What the published mask heads cost: time, memory, and their share of a model of the published size."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Job, paired_times, peak_memory, ratios, summary
from benchmarks.models import OURS, Setting, build, inference, noise
from benchmarks.report import Report, Row, argument_parser, mebibytes, quotient
from hunterFormsBS.bandSplit import masks_of_stems
from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.kernels.seam import reference

PLAIN = "MLPs"
HEADS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {},
    "Large-Inst v2": {"mask_transformer_depth": 4},
    "HyperACE v1": {"use_hyperACE": True, "segm_version": 1},
    "HyperACE v2": {"use_hyperACE": True, "segm_version": 2},
}
"""Constructor arguments of each head."""

PUBLISHED = Setting(dim=256, depth=12, hop=512)
SMALL: Mapping[str, Any] = {"segm_backbone_channels": (16, 16, 16, 16, 16), "segm_num_heads": 2}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the heads that the command line asks for."""
    options = _options(argv)
    report = Report(options)
    settings = {name: _setting(name, tiny=options.tiny) for name in options.heads}
    settings = {PLAIN: _setting(PLAIN, tiny=options.tiny), **settings}
    if "time" in options.measure:
        report.table(f"Inference, {options.seconds:g} s: time", *_times(settings, options.seconds, options.rounds))
    if "kernels" in options.measure:
        report.table(
            f"The head by itself, {options.seconds:g} s: kernels", *_kernels(settings, options.seconds, options.rounds)
        )
    if "memory" in options.measure:
        report.table(f"Inference, {options.seconds:g} s: peak memory", _memory(settings, options))
    report.finish()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("heads", __doc__ or "", rounds=3)
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS), help="which (default: all)")
    parser.add_argument(
        "--measure", nargs="+", choices=("time", "kernels", "memory"), default=["time", "kernels", "memory"]
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="audio (default 4)")
    options = parser.parse_args(argv)
    if options.tiny:
        options.seconds = 0.5
    return options


def _setting(name: str, *, tiny: bool) -> Setting:
    extra = dict(HEADS[name])
    if not tiny:
        return replace(PUBLISHED, extra=extra)
    if "use_hyperACE" in extra:
        extra |= SMALL
    return replace(PUBLISHED, dim=16, depth=1, heads=2, dim_head=8, bands=8, extra=extra)


def _model(setting: Setting) -> BandSplitRotator:
    model = build(OURS, setting)
    if not isinstance(model, BandSplitRotator):
        raise TypeError(f"the model is a {type(model).__name__}")
    return model


def _tokens(setting: Setting, seconds: float) -> Tensor:
    bands = len(setting.shared_arguments().get("freqs_per_bands", range(62)))
    return torch.randn(1, round(seconds * 44100) // setting.hop + 1, bands, setting.dim)


def _head(model: BandSplitRotator, tokens: Tensor, *, formula: bool = False) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return masks_of_stems(list(model.mask_estimators), tokens)  # type: ignore[arg-type]

    def run_formula() -> Tensor:
        with reference():
            return run()

    return run_formula if formula else run


def _times(settings: Mapping[str, Setting], seconds: float, rounds: int) -> tuple[list[Row], object]:
    models = {name: _model(setting) for name, setting in settings.items()}
    audio = noise(seconds)
    functions: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for name, model in models.items():
        functions[name, "model"] = inference(model, audio)
        functions[name, "head"] = _head(model, _tokens(settings[name], seconds))
    times = paired_times(functions, rounds)
    rows: list[Row] = [
        {
            "head": name,
            "parameters of heads": f"{sum(p.numel() for p in model.mask_estimators.parameters()):,}",
            "median s": f"{summary(times[name, 'model']).median:.3f}",
            f"÷ {PLAIN}": None if name == PLAIN else ratios(times, (name, "model"), (PLAIN, "model")),
            "share of the head": ratios(times, (name, "head"), (name, "model")),
        }
        for name, model in models.items()
    ]
    return rows, {f"{name}, {part}": values for (name, part), values in times.items()}


def _kernels(settings: Mapping[str, Setting], seconds: float, rounds: int) -> tuple[list[Row], object]:
    rows: list[Row] = []
    numbers: dict[str, object] = {}
    for name, setting in settings.items():
        model = _model(setting)
        tokens = _tokens(setting, seconds)
        functions = {"kernels": _head(model, tokens), "formula": _head(model, tokens, formula=True)}
        outputs = {way: function() for way, function in functions.items()}
        apart = (outputs["kernels"] - outputs["formula"]).abs().max() / outputs["formula"].abs().max()
        times = paired_times(functions, rounds)
        numbers[name] = times
        rows.append(
            {
                "head": name,
                "median s": f"{summary(times['kernels']).median:.3f}",
                "÷ formula": ratios(times, "kernels", "formula"),
                "apart": f"{float(apart):.0e}",
            }
        )
    return rows, numbers


def _memory(settings: Mapping[str, Setting], options: argparse.Namespace) -> list[Row]:
    peaks = {
        name: peak_memory(Job(setting, options.seconds, threads=options.threads)) for name, setting in settings.items()
    }
    return [
        {"head": name, "peak MiB": mebibytes(peak), f"÷ {PLAIN}": quotient(peak, peaks[PLAIN])}
        for name, peak in peaks.items()
    ]


if __name__ == "__main__":
    main()
