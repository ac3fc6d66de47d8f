"""Throughput on a GPU: the two sizes that most published checkpoints have, beside BS-RoFormer in the same run."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from benchmarks.compiled import compile_mask_estimation
from benchmarks.launches import launches, operators
from benchmarks.measure import paired_times, ratios, si_sdr, summary
from benchmarks.models import (
    OURS,
    PACKAGES,
    REFERENCE,
    TINY,
    Package,
    Setting,
    build,
    inference,
    noise,
    peers_quiet,
    plain_state_dict,
    require,
    stems_of_noise,
    training,
)
from benchmarks.report import Report, Row, argument_parser, mebibytes
from hunterFormsBS import BandSplitRotator

SETTINGS = {
    "bs": Setting("bs", dim=512, depth=12),
    "mel": Setting("mel", dim=384, depth=6),
}


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    Parameters
    ----------
    package : str
        Whose model.
    precision : {'float32', 'tf32', 'bfloat16', 'float16'}
        `tf32` allows matrix products to round their factors to 10 bits.
    weights : bool
        Convert the weights to the half type, instead of autocast.
    run : {'eager', 'compiled', 'compiled, graphs', 'captured'}
        `compiled, graphs` lets the compiler replay CUDA graphs; `captured` replays the eager kernels as one.
    sage_attention, use_torch_checkpoint : bool
        Constructor arguments of hunterFormsBS.
    """

    package: Package = OURS
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    weights: bool = False
    run: Literal["eager", "compiled", "compiled, graphs", "captured"] = "eager"
    sage_attention: bool = False
    use_torch_checkpoint: bool = False

    @property
    def half(self) -> torch.dtype | None:
        """The half type, if any."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.precision)

    def __str__(self) -> str:
        """Name the variant in a table."""
        parts = [self.package, self.precision + (" weights" if self.weights else " autocast" if self.half else "")]
        parts += [self.run] * (self.run != "eager")
        parts += ["SageAttention"] * self.sage_attention + ["checkpointing"] * self.use_torch_checkpoint
        return ", ".join(parts)


INFERENCE = (
    Variant(REFERENCE),
    Variant(REFERENCE, "tf32"),
    Variant(REFERENCE, "bfloat16"),
    Variant("pymss-core"),
    Variant("pymss-core", "bfloat16"),
    Variant(),
    Variant(run="compiled"),
    Variant(precision="tf32"),
    Variant(precision="tf32", run="compiled"),
    Variant(precision="bfloat16"),
    Variant(precision="bfloat16", run="compiled"),
    Variant(precision="bfloat16", weights=True),
    Variant(precision="bfloat16", weights=True, run="captured"),
    Variant(precision="bfloat16", weights=True, run="compiled"),
    Variant(precision="bfloat16", weights=True, run="compiled, graphs"),
    Variant(precision="float16", weights=True),
    Variant(precision="float16", weights=True, sage_attention=True),
)

TRAINING = (
    Variant(REFERENCE),
    Variant(REFERENCE, "bfloat16"),
    Variant(),
    Variant(use_torch_checkpoint=True),
    Variant(precision="bfloat16"),
    Variant(precision="bfloat16", use_torch_checkpoint=True),
    Variant(precision="bfloat16", run="compiled"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line asks for."""
    options = _options(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.gpu needs a CUDA device, and PyTorch finds none here. "
            "To try the benchmark itself out: python -m benchmarks.gpu --device cpu --tiny"
        )
    require(options.packages)
    report = Report(options)
    with peers_quiet():
        for layout in options.layouts:
            setting = replace(
                SETTINGS[layout] if not options.tiny else replace(TINY, layout=layout), stems=options.stems
            )
            name = f"{layout} dim {setting.dim} depth {setting.depth}"
            for work in options.work:
                bench = Bench(options, setting, work)
                report.table(
                    f"{name}, {work}, {options.seconds:g} s, batch {options.batch}", bench.rows(), bench.numbers
                )
            report.table(f"{name}: what a forward launches", _launch_rows(options, setting))
    report.finish()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("gpu", __doc__ or "", rounds=10)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES), help="what to compare")
    parser.add_argument("--layouts", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--work", nargs="+", choices=("inference", "training"), default=["inference", "training"])
    parser.add_argument("--seconds", type=float, default=8.0, help="audio in an item (default 8)")
    parser.add_argument("--batch", type=int, default=1, help="items in a batch (default 1)")
    parser.add_argument("--stems", type=int, default=1)
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default inductor)")
    options = parser.parse_args(argv)
    if options.tiny:
        options.seconds = 0.2
    return options


class Bench:
    """Time the variants of one model, each in rounds with the reference: BS-RoFormer, eager, float32.

    Parameters
    ----------
    options : argparse.Namespace
        Device, batch, rounds and so on.
    setting : Setting
        The model.
    work : {'inference', 'training'}
        What to time.
    """

    def __init__(self, options: argparse.Namespace, setting: Setting, work: str) -> None:
        self.options = options
        self.setting = setting
        self.work = work
        self.device = torch.device(options.device)
        self.audio = noise(options.seconds, batch=options.batch).to(self.device)
        self.target = stems_of_noise(options.seconds, setting.stems, batch=options.batch).to(self.device)
        self.numbers: dict[str, Any] = {}
        known = [v for v in (INFERENCE if work == "inference" else TRAINING) if v.package in options.packages]
        self.variants = [v for v in known if self.device.type == "cuda" or v.run in ("eager", "compiled")]
        self.reference = self.variants[0]
        torch.manual_seed(0)
        model = build(self.reference.package, setting)
        weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        self.weights = dict.fromkeys(PACKAGES, plain_state_dict(weights, setting.layout))
        self.weights[self.reference.package] = weights
        with _out_of_memory_is_a_result():
            self.reference_function = self._function(self.reference, model)
            self.reference_output = self.reference_function().float().cpu()

    def rows(self) -> list[Row]:
        """Return one row for each variant."""
        rows: list[Row] = []
        for variant in self.variants:
            row: dict[str, object] = {
                "variant": variant,
                "s of audio per s": "out of memory",
                "times as fast": None,
                "SI-SDR dB": None,
                "first call s": None,
                "peak MiB": None,
                "launches": None,
            }
            with _out_of_memory_is_a_result():
                row |= self._measure(variant)
            rows.append(row)
            if variant.run != "eager":
                torch.compiler.reset()
            if self.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
        return rows

    def _measure(self, variant: Variant) -> dict[str, object]:
        if variant.sage_attention and importlib.util.find_spec("sageattention") is None:
            return {"s of audio per s": "sageattention is not installed"}
        function = self._function(variant)
        start = time.perf_counter()
        output = function().float().cpu()
        first_call = time.perf_counter() - start
        peak = self._peak(function)
        times = paired_times(
            {"reference": self.reference_function, "variant": function}, self.options.rounds, device=self.device
        )
        self.numbers[str(variant)] = times
        # Times are of the reference over the variant: how many times as fast.
        faster = ratios(times, "reference", "variant")
        reference = self.reference_output.reshape_as(output)
        return {
            "s of audio per s": f"{self.options.batch * self.options.seconds / summary(times['variant']).median:.1f}",
            "times as fast": faster if variant != self.reference else None,
            "SI-SDR dB": f"{si_sdr(output, reference):.0f}" if self.work == "inference" else None,
            "first call s": f"{first_call:.1f}",
            "peak MiB": mebibytes(peak),
            "launches": launches(function) if self.device.type == "cuda" else None,
        }

    def _function(self, variant: Variant, model: nn.Module | None = None) -> Callable[[], Tensor]:
        """Return what runs the variant once."""
        if model is None:
            extra = {"sage_attention": True} if variant.sage_attention else {}
            extra |= {"use_torch_checkpoint": True} if variant.use_torch_checkpoint else {}
            model = build(variant.package, self.setting.with_extra(**extra))
            model.load_state_dict(self.weights[variant.package])
        model.to(self.device)
        if variant.weights:
            model.to(variant.half)
        if isinstance(model, BandSplitRotator):
            _accelerate(model, variant, self.audio, self.options.backend)
        run = inference(model, self.audio)
        if self.work == "training":
            run = training(model, self.audio, self.target)

        def in_precision() -> Tensor:
            half = None if variant.weights else variant.half
            with _tf32(variant.precision == "tf32"), torch.autocast(self.device.type, half) if half else nullcontext():
                return run()

        return in_precision

    def _peak(self, function: Callable[[], Tensor]) -> int | None:
        """Return the bytes that `function` takes at most above what is there before it."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def _accelerate(model: BandSplitRotator, variant: Variant, audio: Tensor, backend: str) -> None:
    """Replace the model's mask estimation by its compiled or captured form; the STFTs stay outside."""
    if variant.run == "captured":
        with torch.inference_mode(), _tf32(variant.precision == "tf32"):
            replay = _captured(model.mask_spectrum, model.stft.forward(audio))
    elif variant.run == "eager":
        return
    else:
        mode = {"mode": "reduce-overhead"} if variant.run == "compiled, graphs" else {}
        replay = compile_mask_estimation(model, "static", backend=backend, **mode)

    def mask_spectrum(spectrum: Tensor, stem_ids: Sequence[int] | None = None) -> Tensor:  # noqa: ARG001
        return replay(spectrum)

    model.mask_spectrum = mask_spectrum  # type: ignore[method-assign]


def _captured(function: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """Record the kernels of `function` in a CUDA graph, for inputs of the shape of `example`."""
    held = example.clone()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # Libraries set themselves up in calls that cannot be recorded.
        for _ in range(3):
            function(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(held)

    def replay(spectrum: Tensor) -> Tensor:
        held.copy_(spectrum)
        graph.replay()
        return output

    return replay


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _out_of_memory_is_a_result() -> Iterator[None]:
    with suppress(torch.OutOfMemoryError):
        yield


def _launch_rows(options: argparse.Namespace, setting: Setting) -> list[Row]:
    """Count what one eager forward launches, for one stem and for four."""
    rows: list[Row] = []
    audio = noise(options.seconds).to(options.device)
    for package in options.packages:
        row: dict[str, object] = {"package": package}
        for stems in (1, 4):
            model = build(cast(Package, package), replace(setting, stems=stems)).to(options.device)
            function = inference(model, audio)
            row[f"operators, stems {stems}"] = operators(function, options.device)
            row[f"launches, stems {stems}"] = launches(function) if options.device == "cuda" else None
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
