"""Kernels against the formulas, and both against double precision, for configurations drawn at random from all options.

A few are in the quick part. `python -m tests.kernels.test_differential 400` takes that many, every kind of model in
turn, and prints a line for each that differs, with its seed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.kernels.seam import reference
from tests.configurations import COLUMNS, TINY, drawn
from tests.conftest import _as_on_a_gpu

KINDS = tuple(COLUMNS)
SAMPLES = 480
BOUNDS = (1e-5, 1e-4)
"""Differences of outputs and gradients in float32, unless the formulas themselves are not as exact."""

IN_DOUBLE = 1e-7
"""Differences in double precision, where rounding that some layers amplify hides nothing."""

QUICK = 24
ALL = 400

Result = tuple[Tensor, Tensor, dict[str, Tensor]]
"""The audio, the loss, and the gradients."""


def configuration(seed: int) -> dict[str, Any]:
    """Return arguments of a model: every kind in turn, with further options at random."""
    column = COLUMNS[KINDS[seed % len(KINDS)]]
    own = {name: value for name, value in column.items() if name not in TINY or TINY[name] != value}
    return drawn(seed, own)


def model_of(seed: int) -> BandSplitRotator:
    torch.manual_seed(seed)
    model = BandSplitRotator(**configuration(seed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None:
                module.running_mean.normal_()
    return model


def data_for(model: BandSplitRotator, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(2, model.audio_channels, SAMPLES)
    return x, torch.randn(2, model.num_stems, model.audio_channels, SAMPLES)


def result_of(model: BandSplitRotator, x: Tensor, y: Tensor) -> Result:
    model.zero_grad()
    with torch.no_grad():
        audio = model(x)
    loss = model(x, y)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return audio, loss.detach(), grads


def differences(result: Result, expected: Result) -> tuple[float, float]:
    """Return the largest difference of audio and loss, and of gradients, relative to the largest number of each."""
    audio, loss, grads = result
    expected_audio, expected_loss, expected_grads = expected
    assert grads.keys() == expected_grads.keys()
    scale = max(float(grad.abs().max()) for grad in expected_grads.values())
    outputs = float((audio - expected_audio).abs().max() / expected_audio.abs().max().clamp_min(1e-3))
    losses = float((loss - expected_loss).abs() / expected_loss)
    return max(outputs, losses), max(float((grads[name] - expected_grads[name]).abs().max()) for name in grads) / scale


Within = Callable[[], AbstractContextManager[Any]]
WAYS: dict[str, Within] = {"as on a CPU": nullcontext, "as on a GPU": _as_on_a_gpu}


def failures(seed: int, *, compiled: bool = False) -> list[str]:
    """Return how kernels differ from formulas for this seed."""
    model = model_of(seed)
    x, y = data_for(model, seed)
    exact_model, in_double = model_of(seed).double(), (x.double(), y.double())
    with reference():
        by_formula, exact = result_of(model, x, y), result_of(exact_model, *in_double)
    # Some layers, for example norms over few numbers, amplify: formulas in float32 are not exact either.
    bounds = [max(bound, 20 * one) for bound, one in zip(BOUNDS, differences(by_formula, exact), strict=True)]
    found = []

    def compare(way: str, result: Result, other: Result, most: Sequence[float]) -> None:
        apart = differences(result, other)
        if not all(one <= bound for one, bound in zip(apart, most, strict=True)):
            found.append(f"seed {seed} ({KINDS[seed % len(KINDS)]}), {way}: {apart}, more than {most}")

    for way, within in WAYS.items():
        with within():
            compare(f"{way}, double precision", result_of(exact_model, *in_double), exact, (IN_DOUBLE,) * 2)
            result = result_of(model, x, y)
        compare(f"{way}, against formulas", result, by_formula, bounds)
        compare(f"{way}, against double precision", result, exact, bounds)
    if compiled:
        torch._dynamo.reset()
        graph = torch.compile(exact_model.mask_spectrum, backend="aot_eager")
        exact_model.mask_spectrum = graph  # type: ignore[method-assign]
        compare("compiled, double precision", result_of(exact_model, *in_double), exact, (IN_DOUBLE,) * 2)
    return found


def seeds(count: int) -> list[Any]:
    return [pytest.param(seed, marks=() if seed < QUICK else pytest.mark.exhaustive) for seed in range(count)]


@pytest.mark.filterwarnings("ignore:sage_attention=True has no effect here:UserWarning")
@pytest.mark.parametrize("seed", seeds(ALL))
def test_kernels_compute_the_formulas_for_any_configuration(seed: int) -> None:
    print("seed", seed, configuration(seed))
    assert failures(seed) == []


@pytest.mark.exhaustive
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:sage_attention=True has no effect here:UserWarning")
@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_graphs_compute_the_formulas_for_any_configuration(seed: int) -> None:
    print("seed", seed, configuration(seed))
    assert failures(seed, compiled=True) == []


def main(first: int, count: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    bad = 0
    for seed in range(first, first + count):
        try:
            found = failures(seed, compiled=seed < len(KINDS))
        except Exception as error:  # noqa: BLE001  # a configuration that fails is a finding too
            found = [f"seed {seed}: {error!r}"[:2000]]
        bad += bool(found)
        print(*found, sep="\n", end="\n" if found else "", flush=True)
    print(f"{count} configurations from seed {first}, {bad} differ")


if __name__ == "__main__":
    main(0, int(sys.argv[1]))
