"""One seed and one thread for every test, and small models."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.kernels import linear, seam, transformer
from hunterFormsBS.kernels.seam import Where, noting_kernels
from tests.models import TINY


def pytest_configure() -> None:
    """Take Ctrl-C and the end of a terminal as usual, and give hypothesis the time that a busy machine needs.

    A shell lets what it starts in the background ignore the one, and nohup the other, and so would the programs that
    tests start and interrupt.
    """
    hypothesis.settings.register_profile("tests", deadline=None)
    hypothesis.settings.load_profile("tests")
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP.
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


# ---- markers: what a test needs and what it costs; pyproject.toml says what each stands for

GIVEN_BY_FIXTURES = {"chromium": "browser", "starts_processes": "process"}
COSTS = {"browser", "compile", "exhaustive", "export", "process", "slow"}
PROGRAMS_OF_OURS = (
    "benchmarks",
    *(f"hunterFormsBS.{name}" for name in ("catalogue", "checkpoint.programs", "program", "songs", "training")),
)
PEERS = ("bs_roformer", "PoPE_pytorch", "pymss_core", "rotary_embedding_torch")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their arguments and by what their modules import."""
    for item in items:
        if isinstance(item, pytest.Function):
            imported = modules_behind(item.module)
            for fixture, marker in GIVEN_BY_FIXTURES.items():
                if fixture in item.fixturenames:
                    item.add_marker(marker)
            if any(name.startswith(PEERS) for name in imported):
                item.add_marker("peers")
            if "torch" in imported and not any(name.startswith(PROGRAMS_OF_OURS) for name in imported):
                item.add_marker("newest")


@cache
def modules_behind(module: ModuleType) -> set[str]:
    """Return the names of the modules that a test module imports, or imports something from."""
    found = [value for value in vars(module).values() if isinstance(value, (ModuleType, FunctionType, type))]
    return {value.__name__ if isinstance(value, ModuleType) else value.__module__ for value in found}


@cache
def cpu_seconds_that_are_much() -> float:
    """Return how long a costly test computes on this machine: 20 times as long as 6,000 small sums.

    That is half a second on an AMD EPYC with AVX-512. A slower or busier processor names no other tests.
    """
    start, x = time.process_time(), torch.zeros(16)
    for _sum in range(6000):
        x = (x + 1).relu()
    return 20 * (time.process_time() - start)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note tests that cost much without a marker that says so."""
    much, start, processes = cpu_seconds_that_are_much(), time.process_time(), os.times().children_user
    yield
    processes = os.times().children_user - processes
    cost = (time.process_time() - start + processes) / much
    if cost > 1 and not COSTS.intersection(marker.name for marker in item.iter_markers()):
        item.user_properties.append(("costs", f"{cost:.1f}{', in processes' if processes else ''}: {item.nodeid}"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List what `pytest_runtest_call` noted, in all workers."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    noted = {said for report in reports for name, said in getattr(report, "user_properties", ()) if name == "costs"}
    if noted:
        terminalreporter.section(f"costly, and marked neither {' nor '.join(sorted(COSTS))}")
        for said in sorted(noted, key=lambda said: -float(said.split(",")[0].split(":")[0])):
            terminalreporter.line(said)


ROOT = Path(__file__).resolve().parent.parent

# What the commands of the pages find in place of programs: everything is installed, and nobody looks at TensorBoard.
PROGRAMS = {
    "python": f"""case "$*" in "-m pip install "*) ;; *) exec '{sys.executable}' "$@" ;; esac""",
    "python3": f"""case "$1" in start.py) shift; exec '{sys.executable}' -m hunterFormsBS "$@";; esac
mkdir -p .venv/bin && touch .venv/bin/activate""",
    "hunterforms": f"""exec '{sys.executable}' -m hunterFormsBS "$@" """,
    "sleep": "exec /bin/sleep 0.02",
    "tensorboard": f'''exec '{sys.executable}' -m tensorboard.main --inspect "$@"''',
}


@pytest.fixture(scope="session")
def starts_processes() -> None:
    """Mark the tests of a fixture that asks for this one."""


@pytest.fixture
def run_commands(
    starts_processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs commands of a page in a folder, as one shell script, all but installing things."""
    programs = tmp_path_factory.mktemp("programs")
    for name, program in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{program}\n")
        (programs / name).chmod(0o755)
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"

    def run(commands: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        script = "\n".join(["set -m", *commands])
        return subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
        )

    return run


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model(overlapping_mask: torch.Tensor) -> Callable[..., BandSplitRotator]:
    """Return a function that builds a small model; `overlapping=True` gives it bands that overlap."""

    def build(
        kind: type[BandSplitRotator] = BandSplitRotator, *, overlapping: bool = False, **overrides: Any
    ) -> BandSplitRotator:
        if overlapping:
            overrides["mask_filter_bank"] = overlapping_mask
        arguments = TINY | overrides
        if any(overrides.get(name) is not None for name in ("mask_filter_bank", "num_bands")):
            del arguments["freqs_per_bands"]
        return kind(**arguments)

    return build


@pytest.fixture(scope="session")
def overlapping_mask() -> torch.Tensor:
    """Return a layout in which some bins are in one band, some in two, and some in three, not all side by side."""
    mask = torch.zeros(5, 33, dtype=torch.bool)
    for band, (low, high) in enumerate([(0, 4), (2, 9), (7, 20), (8, 33), (15, 30)]):
        mask[band, low:high] = True
    mask[0, 32] = True
    return mask


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], None]:
    """Return a function that moves every trained parameter away from its initial value, also where that is 0 or 1."""

    def move(module: nn.Module) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)

    return move


@contextmanager
def _bytes_saved_for_backward() -> Iterator[dict[int, int]]:
    saved: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # so that no address is used twice
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


@pytest.fixture
def bytes_saved_for_backward() -> Callable[[], AbstractContextManager[dict[int, int]]]:
    """Return a context manager that collects the sizes of the distinct memories that autograd keeps, by address."""
    return _bytes_saved_for_backward


@contextmanager
def _as_on_a_gpu() -> Iterator[list[str]]:
    with pytest.MonkeyPatch.context() as patch, noting_kernels() as ran:
        patch.setattr(seam, "where_of", lambda _tensors: Where.DEVICE)
        patch.setattr(transformer, "TOKENS_PER_BLOCK", 10**9)
        patch.setattr(linear, "onednn", lambda _dtype: None)
        yield ran


@pytest.fixture
def as_on_a_gpu() -> Callable[[], AbstractContextManager[list[str]]]:
    """Return a context manager: within it a CPU takes the kernels of a GPU; it collects names of those that ran."""
    return _as_on_a_gpu
