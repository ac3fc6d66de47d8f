"""Sweep what a model's cost depends on: length, stems, batch, dtype, compilation, optional parts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from benchmarks.compiled import COMPILATIONS, Attempt, attempt
from benchmarks.measure import Job, paired_times, peak_memory, prepare, ratios, si_sdr, summary
from benchmarks.models import LAYOUTS, OURS, SAMPLE_RATE, TINY, Setting, build, inference, noise
from benchmarks.report import Report, argument_parser, mebibytes, quotient
from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.kernels.int8 import in_int8

FEATURES: dict[str, dict[str, object]] = {
    "plain": {},
    "value residual learning": {"use_value_residual_learning": True},
    "value residual, constant": {"use_value_residual_learning": True, "learned_value_residual_mix": False},
    "PoPE": {"use_pope": True},
    "2 residual streams": {"num_residual_streams": 2},
    "4 residual streams": {"num_residual_streams": 4},
    "4 residual streams, constrained": {"num_residual_streams": 4, "mc_hyper_conn_sinkhorn_iters": 2},
    "2 fractions": {"num_residual_fracs": 2},
    "linear transformer": {"linear_transformer_depth": 1},
    "skip connection": {"skip_connection": True},
}
"""Constructor arguments of the variants whose cost is compared with the first one's."""

DTYPES: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float32": (torch.float32, None),
    "autocast to bfloat16": (torch.float32, torch.bfloat16),
    "bfloat16 weights": (torch.bfloat16, None),
    "autocast to float16": (torch.float32, torch.float16),
    "float16 weights": (torch.float16, None),
    "int8": (torch.float32, torch.int8),
}
"""Dtype of the weights, and that of the computation where it is another."""

LOUDNESS = (1e-4, 1.0, 1e4)
"""Factors on the input at which the output must be finite."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sweeps that the command line asks for."""
    options = _options(argv)
    report = Report(options)
    for name in options.sweeps:
        SWEEPS[name](options, report)
    report.finish()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("sweep", __doc__ or "", rounds=3)
    parser.add_argument("sweeps", nargs="*", help=f"which sweeps: {', '.join(SWEEPS)} (default all)")
    parser.add_argument("--layout", choices=LAYOUTS, default="bs")
    parser.add_argument("--seconds", type=float, default=4.0, help="audio, except for lengths (default 4)")
    parser.add_argument("--chunk-seconds", type=float, default=4.0, help="chunk of a long song (default 4)")
    parser.add_argument("--lengths", nargs="+", type=float, default=[8, 16, 32, 64], help="seconds of long songs")
    parser.add_argument("--stems", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default inductor)")
    parser.add_argument("--compilations", nargs="+", choices=COMPILATIONS, default=list(COMPILATIONS))
    parser.add_argument("--checkpoint", type=Path, help="weights for the dtype sweep, instead of random ones")
    parser.add_argument("--song", type=Path, help="audio for the dtype sweep, instead of noise")
    options = parser.parse_args(argv)
    if unknown := set(options.sweeps) - set(SWEEPS):
        parser.error(f"no sweep {', '.join(sorted(unknown))}; there are: {', '.join(SWEEPS)}")
    options.sweeps = options.sweeps or list(SWEEPS)
    options.setting = Setting(options.layout)
    if options.tiny:
        options.setting = replace(TINY, layout=options.layout)
        options.seconds, options.chunk_seconds, options.lengths = 0.2, 0.1, [0.2, 0.4]
    return options


def sweep_length(options: argparse.Namespace, report: Report) -> None:
    """Whole songs through `separate`: time and memory against length."""
    jobs = {
        length: Job(
            options.setting, length, work="separate", threads=options.threads, chunk_seconds=options.chunk_seconds
        )
        for length in options.lengths
    }
    times = paired_times({length: prepare(job) for length, job in jobs.items()}, options.rounds)
    peaks = {length: peak_memory(job) for length, job in jobs.items()}
    rows = [
        {
            "song s": length,
            "median s": f"{summary(seconds).median:.2f}",
            "s per s of song": f"{summary(seconds).median / length:.3f}",
            "peak MiB": mebibytes(peaks[length]),
        }
        for length, seconds in times.items()
    ]
    report.table("Length of the song", rows, {"seconds": times, "peaks": peaks})


def sweep_stems(options: argparse.Namespace, report: Report) -> None:
    """More stems, beside what one stem's head costs by itself."""
    audio = noise(options.seconds)
    models = {n: cast(BandSplitRotator, build(OURS, replace(options.setting, stems=n))) for n in options.stems}
    functions: dict[object, Callable[[], object]] = {n: inference(model, audio) for n, model in models.items()}
    functions["head"] = _head(models[options.stems[0]], audio)
    times = paired_times(functions, options.rounds)
    head = summary(times.pop("head")).median
    fewest = options.stems[0]
    one = summary(times[fewest]).median
    rows = [
        {
            "stems": n,
            "median s": f"{summary(seconds).median:.3f}",
            f"÷ {fewest}": str(ratios(times, n, fewest)),
            "each further s": f"{(summary(seconds).median - one) / (n - fewest):.3f}" if n != fewest else None,
            "its head alone s": f"{head:.3f}",
        }
        for n, seconds in times.items()
    ]
    report.table("Stems", rows, {"seconds": times, "head": head})


def _head(model: BandSplitRotator, audio: Tensor) -> Callable[[], Tensor]:
    """Return a function that does what the model does for one stem only: mask, product, inverse transform."""
    with torch.inference_mode():
        spectrum = model.stft.forward(audio)
        tokens = model.transform(model.split_bands(model.gather_bands(spectrum)))

    def run() -> Tensor:
        with torch.inference_mode():
            mask = model.average_overlaps(model.estimate_masks(tokens, [0]))
            return model.stft.inverse(model.apply_mask(spectrum, mask), audio.shape[-1])

    return run


def sweep_batch(options: argparse.Namespace, report: Report) -> None:
    """Larger batches."""
    jobs = {n: Job(options.setting, options.seconds, batch=n, threads=options.threads) for n in options.batches}
    times = paired_times({n: prepare(job) for n, job in jobs.items()}, options.rounds)
    rows = [
        {
            "batch": n,
            "median s": f"{summary(seconds).median:.3f}",
            "s per item": f"{summary(seconds).median / n:.3f}",
            "peak MiB": mebibytes(peak_memory(jobs[n])),
        }
        for n, seconds in times.items()
    ]
    report.table("Batch", rows, times)


def sweep_dtype(options: argparse.Namespace, report: Report) -> None:
    """Half precision and int8: time, faithfulness to float32, and whether quiet and loud input stay finite."""
    model, audio = _model_and_song(options)
    functions: dict[str, Callable[[], Tensor]] = {}
    for name in dict.fromkeys(("float32", *options.dtypes)):
        weights, computed = DTYPES[name]
        functions[name] = _in_dtype(model, audio, weights, computed)
    reference = functions["float32"]()
    outputs = {name: function() for name, function in functions.items()}
    times = paired_times(functions, options.rounds)
    rows = []
    for name, output in outputs.items():
        weights, computed = DTYPES[name]
        finite = all(bool(_in_dtype(model, f * audio, weights, computed)().isfinite().all()) for f in LOUDNESS)
        rows.append(
            {
                "dtype": name,
                "median s": f"{summary(times[name]).median:.3f}",
                "÷ float32": ratios(times, name, "float32") if name != "float32" else None,
                "SI-SDR dB": f"{si_sdr(output, reference):.1f}" if name != "float32" else None,
                "finite at 1e-4 to 1e4": "yes" if finite else "NO",
            }
        )
    report.table("Precision", rows, times)


def _model_and_song(options: argparse.Namespace) -> tuple[BandSplitRotator, Tensor]:
    torch.manual_seed(0)
    model = from_checkpoint(options.checkpoint) if options.checkpoint else build(OURS, options.setting)
    if options.song is None:
        return cast(BandSplitRotator, model), noise(options.seconds)
    import soundfile

    data, _ = soundfile.read(options.song, dtype="float32", always_2d=True, frames=round(options.seconds * SAMPLE_RATE))
    return cast(BandSplitRotator, model), torch.from_numpy(data.T)[None]


def _in_dtype(
    model: BandSplitRotator, audio: Tensor, weights: torch.dtype, computed: torch.dtype | None
) -> Callable[[], Tensor]:
    if weights != torch.float32:
        state_dict = model.state_dict()
        model = type(model)(**model.configuration).eval()
        model.load_state_dict(state_dict)
        model = model.to(weights)
    run = inference(model, audio)

    def in_dtype() -> Tensor:
        if computed == torch.int8:
            with in_int8():
                return run()
        with torch.autocast(audio.device.type, computed) if computed else nullcontext():
            return run()

    return in_dtype


def sweep_compile(options: argparse.Namespace, report: Report) -> None:
    """`torch.compile` of mask estimation, against eager execution."""
    rows = []
    attempts: dict[str, Attempt] = {}
    for name in options.compilations:
        done = attempts[name] = attempt(
            name, options.setting, options.seconds, rounds=options.rounds, backend=options.backend
        )
        rows.append(
            {
                "compilation": name,
                "first call s": f"{done.first_call:.1f}",
                "median s": f"{summary(done.seconds['compiled']).median:.3f}",
                "eager s": f"{summary(done.seconds['eager']).median:.3f}",
                "÷ eager": ratios(done.seconds, "compiled", "eager"),
                "apart": f"{done.apart:.0e}",
                "graphs": done.graphs,
                "more for other lengths": done.more_graphs,
            }
        )
    report.table(f"torch.compile, backend {options.backend}", rows, {n: a.seconds for n, a in attempts.items()})


def sweep_features(options: argparse.Namespace, report: Report) -> None:
    """Relate the cost of optional parts of the architecture to that of the first variant."""
    settings = {name: options.setting.with_extra(**FEATURES[name]) for name in options.features}
    costs = {work: _costs(settings, work, options) for work in ("inference", "training")}
    first = options.features[0]
    rows = []
    for name in settings:
        row: dict[str, object] = {"variant": name}
        for work, (times, peaks) in costs.items():
            row[f"{work} s"] = f"{summary(times[name]).median:.3f}"
            row[f"{work} ÷ {first}"] = ratios(times, name, first) if name != first else None
            row[f"{work} MiB"] = mebibytes(peaks[name])
            row[f"MiB ÷ {first}, {work}"] = quotient(peaks[name], peaks[first]) if name != first else None
        rows.append(row)
    report.table("Optional parts", rows, costs)


def _costs(
    settings: Mapping[str, Setting], work: str, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    seconds = options.seconds if work == "inference" else options.seconds / 2
    jobs = {name: Job(one, seconds, work=work, threads=options.threads) for name, one in settings.items()}
    times = paired_times({name: prepare(job) for name, job in jobs.items()}, options.rounds)
    return times, {name: peak_memory(job) for name, job in jobs.items()}


SWEEPS: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "length": sweep_length,
    "stems": sweep_stems,
    "batch": sweep_batch,
    "dtype": sweep_dtype,
    "compile": sweep_compile,
    "features": sweep_features,
}


if __name__ == "__main__":
    main()
