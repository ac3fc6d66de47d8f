"""`torch.compile` of mask estimation: how long it takes, what it gains, and when it has to be done again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.measure import paired_times
from benchmarks.models import OURS, Setting, build, noise
from hunterFormsBS import BandSplitRotator

AXIS_TIME = 3
"""Of a spectrum, `(b, s, f, t, c)`."""

COMPILATIONS = ("static", "dynamic")
"""One graph for one length, or one for all lengths."""


@dataclass(frozen=True)
class Attempt:
    """How a compilation went.

    Parameters
    ----------
    first_call : float
        Seconds that the first call took, compilation included.
    seconds : dict
        Of `eager` and `compiled` calls, in rounds.
    apart : float
        Largest difference from eager output, relative to its peak, over all lengths.
    graphs, more_graphs : int
        Graphs compiled for the first length, and for two other lengths.
    """

    first_call: float
    seconds: dict[str, list[float]]
    apart: float
    graphs: int
    more_graphs: int


def attempt(kind: str, setting: Setting, seconds: float, *, rounds: int, backend: str) -> Attempt:
    """Compile `mask_spectrum` as one graph, which fails if anything breaks it, and run it on three lengths."""
    with nothing_compiled_before():
        return _attempt(kind, setting, seconds, rounds=rounds, backend=backend)


@contextmanager
def nothing_compiled_before() -> Iterator[None]:
    """Hide what this process, and others before it, have compiled: the first call is to take what it takes."""
    torch.compiler.reset()
    with TemporaryDirectory() as folder, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        yield


def _attempt(kind: str, setting: Setting, seconds: float, *, rounds: int, backend: str) -> Attempt:
    torch.manual_seed(0)
    model = cast(BandSplitRotator, build(OURS, setting))
    with torch.inference_mode():
        spectra = [model.stft.forward(noise(length)) for length in (seconds, seconds * 0.8, seconds * 0.7)]
    compiled = compile_mask_estimation(model, kind, backend=backend)

    def eagerly() -> Tensor:
        with torch.inference_mode():
            return model.mask_spectrum(spectra[0])

    def compiledly() -> Tensor:
        with torch.inference_mode():
            return compiled(spectra[0])

    before = graphs_compiled()
    start = time.perf_counter()
    compiledly()
    first_call = time.perf_counter() - start
    graphs = graphs_compiled() - before
    times = paired_times({"eager": eagerly, "compiled": compiledly}, rounds)
    with torch.inference_mode():
        apart = max(_apart(compiled(spectrum), model.mask_spectrum(spectrum)) for spectrum in spectra)
    return Attempt(first_call, times, apart, graphs, graphs_compiled() - before - graphs)


def compile_mask_estimation(
    model: BandSplitRotator, kind: str, *, backend: str = "inductor", **options: Any
) -> Callable[[Tensor], Tensor]:
    """Compile `model.mask_spectrum`; `dynamic` leaves the number of frames open from the first call on."""
    compiled = torch.compile(model.mask_spectrum, fullgraph=True, backend=backend, **options)
    if kind == "static":
        return cast("Callable[[Tensor], Tensor]", compiled)

    def with_open_time(spectrum: Tensor) -> Tensor:
        torch._dynamo.mark_dynamic(spectrum, AXIS_TIME)
        return compiled(spectrum)

    return with_open_time


def graphs_compiled() -> int:
    """Return how many graphs this process has compiled since `torch.compiler.reset`."""
    return int(counters["stats"]["unique_graphs"])


def _apart(output: Tensor, reference: Tensor) -> float:
    return float((output - reference).abs().max() / reference.abs().max())
