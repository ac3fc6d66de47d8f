"""Songs from file to files: memory against length, time beside the model's own, what chunks and overlap are worth."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.measure import ROOT, paired_times, ratios
from benchmarks.models import OURS, TINY, Setting, build, inference, noise
from benchmarks.report import Report, Row, argument_parser
from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import save_checkpoint
from hunterFormsBS.separation import separate

STEMS = ("vocals", "drums", "bass", "other")
MINUTES = (1, 3, 10, 30, 60, 120)
RATE = 48000
"""Hz, of the songs; the model's is 44100, so that both conversions take part."""

OVERLAPS = (1, 1.25, 1.5, 2, 4)
SECONDS = (2.0, 4.0, 8.0, 11.0, 16.0)
COMMON = {
    "BS-RoFormer, dim 512, depth 12": Setting("bs", dim=512, depth=12),
    "Mel-Band RoFormer, dim 384, depth 6": Setting("mel", dim=384, depth=6),
}
"""The sizes of the most used public models."""

PROGRAM = """
import json, sys, time
from hunterFormsBS import BandSplitRotator
from hunterFormsBS.__main__ import main

own = 0.0
forward = BandSplitRotator.forward

def timed(self, *arguments, **keywords):
    global own
    begun = time.perf_counter()
    result = forward(self, *arguments, **keywords)
    own += time.perf_counter() - begun
    return result

BandSplitRotator.forward = timed
begun = time.perf_counter()
status = main(sys.argv[1:])
print(json.dumps({"own": own, "whole": time.perf_counter() - begun}))
print(open("/proc/self/status").read())
sys.exit(status)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line asks for."""
    parser = argument_parser("songs", __doc__ or "", rounds=3)
    parser.add_argument("parts", nargs="*", help=f"which parts: {', '.join(PARTS)} (default all)")
    parser.add_argument("--steps", type=int, default=1000, help="of training the quickstart's model (default 1000)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw memory against length")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    report = Report(options)
    for name in options.parts or PARTS:
        PARTS[name](options, report)
    report.finish()


# From file to files --------------------------------------------------------------------------------------------------


def memory(options: argparse.Namespace, report: Report) -> None:
    """Measure the peak memory of the whole program for songs of several lengths."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_model(folder / "model.ckpt", small=True)
        peaks: dict[str, list[float]] = {}
        lengths = (0.1, 0.2) if options.tiny else MINUTES
        for kind, minutes in product(("wav", "flac"), lengths):
            song = _write_song(folder / "song.flac", minutes)
            peaks.setdefault(kind, []).append(_run(folder, song, kind, options.threads)["peak"])
        rows: list[Row] = [
            {"minutes": minutes, **{f"{kind}, MiB": round(values[index]) for kind, values in peaks.items()}}
            for index, minutes in enumerate(lengths)
        ]
    report.table("Peak memory of the whole program, 48 kHz stereo, four stems and the residual", rows, peaks)
    if options.picture is not None:
        _draw(options.picture, lengths, peaks)


def overhead(options: argparse.Namespace, report: Report) -> None:
    """Measure how much longer the whole program takes than the calls of the model in it."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_model(folder / "model.ckpt", small=options.tiny)
        song = _write_song(folder / "song.flac", 0.1 if options.tiny else 2)
        rows: list[Row] = []
        numbers: dict[str, list[float]] = {}
        for kind in ("wav", "flac"):
            runs = [_run(folder, song, kind, options.threads, num_overlap=2) for _ in range(options.rounds)]
            numbers[kind] = [run["whole"] / run["own"] for run in runs]
            rows.append(
                {"format": kind, "seconds": median(run["whole"] for run in runs), "ratio": median(numbers[kind])}
            )
    report.table("Time of the whole program to that of the model's own calls", rows, numbers)


def _write_model(path: Path, *, small: bool) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": 128, "depth": 2, "heads": 8, "dim_head": 32, "stft_hop_length": 441}
    if small:
        # So little that what surrounds the model is nearly all of the work.
        bands = (24, 104, 256, 641)
        sizes = {"dim": 8, "depth": 1, "heads": 1, "dim_head": 8, "freqs_per_bands": bands, "stft_hop_length": 1024}
    model = BandSplitRotator(
        time_transformer_depth=1,
        freq_transformer_depth=1,
        num_stems=len(STEMS),
        stereo=True,
        **sizes,
    )
    sections = {"audio": {"chunk_size": 352800}, "training": {"instruments": list(STEMS)}}
    save_checkpoint(path, model, configuration=sections)


def _write_song(path: Path, minutes: float) -> Path:
    block = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE * 6, 2))
    with soundfile.SoundFile(path, "w", RATE, 2, subtype="PCM_16") as file:
        for _ in range(round(minutes * 10)):
            file.write(block)
    return path


def _run(folder: Path, song: Path, kind: str, threads: int, num_overlap: int = 1) -> dict[str, float]:
    """Separate a song by the program in a process of its own; return seconds and MiB."""
    command = [song, "--checkpoint", folder / "model.ckpt", "--output", folder / "out", "--overwrite", "--residual"]
    command += ["--quiet", "--num-overlap", num_overlap, "--format", kind]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, command)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)},
    )
    first, rest = done.stdout.split("\n", 1)
    (held,) = re.findall(r"VmHWM:\s+(\d+)", rest)
    return {**json.loads(first), "peak": int(held) / 1024}


def _draw(path: Path, minutes: Sequence[float], peaks: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for kind, values in peaks.items():
        axes.plot(minutes, values, marker="o", label=f"{kind.upper()} written")
    # What holding a song and its stems would take: float32, two channels, the song, four stems and the residual.
    whole = [RATE * 60 * length * 2 * 4 * (len(STEMS) + 2) / 2**20 for length in minutes]
    axes.plot(minutes, whole, linestyle="--", color="gray", label="the song and its stems as tensors")
    axes.set(xscale="log", yscale="log", xlabel="length of the song, minutes", ylabel="peak memory, MiB")
    axes.set_xticks(minutes, [f"{length:g}" for length in minutes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


# Chunks and overlap --------------------------------------------------------------------------------------------------


def overlap(options: argparse.Namespace, report: Report) -> None:
    """Train the model of the quickstart on its song, and separate that with several overlaps and chunks."""
    sys.path.insert(0, str(ROOT / "examples"))
    quickstart = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "quickstart.py")))
    torch.manual_seed(0)
    mixture, stems = quickstart.decode(quickstart.find_song())
    model = quickstart.build_model()
    quickstart.train(model, mixture, stems, 0.0, 2 if options.tiny else options.steps)
    segment = quickstart.SEGMENT
    # The model has learned the song by heart, frame by frame: chunks must begin where one of its frames does.
    whole_hops = 60 * model.configuration["stft_hop_length"]

    def score(chunk_size: int, num_overlap: float) -> tuple[float, float]:
        begun = time.perf_counter()
        estimates = separate(model, mixture, chunk_size=chunk_size, num_overlap=num_overlap)
        seconds = time.perf_counter() - begun
        return float(quickstart.signal_to_distortion(stems, estimates).mean()), seconds

    score(whole_hops, 1)
    results = {one: score(whole_hops, one) for one in OVERLAPS}
    rows: list[Row] = [
        {"num_overlap": one, "SDR, dB": round(sdr, 2), "time": seconds / results[1][1]}
        for one, (sdr, seconds) in results.items()
    ]
    report.table(f"Overlap, chunks of {whole_hops} samples", rows, results)
    chunks = {share: score(round(segment * share), 2) for share in (0.25, 0.5, 1, 1.5, 2)}
    rows = [
        {"chunk / that of training": share, "SDR, dB": round(sdr, 2), "time": seconds / chunks[1][1]}
        for share, (sdr, seconds) in chunks.items()
    ]
    report.table("Chunk, num_overlap 2", rows, chunks)


def chunks(options: argparse.Namespace, report: Report) -> None:
    """Time models of the most used sizes on chunks of several lengths."""
    common = {"tiny": TINY} if options.tiny else COMMON
    for title, setting in common.items():
        model = build(OURS, setting)
        functions = {seconds: inference(model, noise(seconds)) for seconds in SECONDS}
        times = paired_times(functions, options.rounds)
        rows: list[Row] = [
            {
                "chunk, s": seconds,
                "seconds": median(times[seconds]),
                "for each second, to 8 s": round(ratios(times, seconds, 8.0).median * 8 / seconds, 2),
            }
            for seconds in SECONDS
        ]
        report.table(title, rows, times)


PARTS: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "memory": memory,
    "overhead": overhead,
    "overlap": overlap,
    "chunks": chunks,
}

if __name__ == "__main__":
    main()
