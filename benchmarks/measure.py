"""Time, memory, shares of time, and agreement: how every benchmark measures."""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import OURS, PACKAGES, TINY, Package, Setting, build, inference, noise, stems_of_noise, training
from hunterFormsBS.separation import separate

Name = TypeVar("Name", bound=Hashable)

ROOT = Path(__file__).resolve().parent.parent

KERNELS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    "aten::_softmax",
    "aten::_softmax_backward_data",
    "mkl::_mkl_linear",
    "mkldnn::_linear_pointwise",
)
"""What PyTorch calls its matrix products and its attention kernel, and the softmax of attention without that kernel."""


class Summary(NamedTuple):
    """Median and range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write the median, and the range in parentheses."""
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def summary(values: Sequence[float]) -> Summary:
    """Return median, minimum and maximum."""
    return Summary(statistics.median(values), min(values), max(values))


def synchronize(device: torch.device | str) -> None:
    """Wait until `device` has done what it was told to."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def paired_times(
    functions: Mapping[Name, Callable[[], object]], rounds: int, *, device: torch.device | str = "cpu"
) -> dict[Name, list[float]]:
    """Time functions against one another.

    Each is called once unmeasured. A round calls all of them, every other round in the opposite order, so that what
    the machine does meanwhile, and what one leaves behind for the next, falls on all alike; times of one round belong
    together, and ratios are to be taken within a round.

    Returns
    -------
    dict
        Seconds, one for each round.
    """
    for function in functions.values():
        function()
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    for index in range(rounds):
        names = list(functions)
        for name in names if index % 2 == 0 else reversed(names):
            synchronize(device)
            start = time.perf_counter()
            functions[name]()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[Name, Sequence[float]], name: Name, to: Name) -> Summary:
    """Summarise, over rounds, the time of `name` divided by the time of `to` in the same round."""
    return summary([mine / theirs for mine, theirs in zip(seconds[name], seconds[to], strict=True)])


def kernel_share(function: Callable[[], object], *, calls: int = 3) -> float:
    """Return the share of the time that `function` spends in matrix products and the attention kernel, on a CPU.

    The median of several calls, after an unmeasured one.
    """
    function()
    return statistics.median(_kernel_share_of_one(function) for _call in range(calls))


def _kernel_share_of_one(function: Callable[[], object]) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        function()
        total = time.perf_counter() - start
    events = profiler.key_averages()
    return sum(cast(float, event.self_cpu_time_total) for event in events if event.key in KERNELS) * 1e-6 / total


def si_sdr(estimate: Tensor, reference: Tensor) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB, all samples of all channels taken together."""
    x, y = estimate.double().flatten(), reference.double().flatten()
    target = y * (x @ y) / (y @ y)
    return float(10 * torch.log10(target.square().sum() / (x - target).square().sum()))


# ---- memory


@dataclass(frozen=True)
class Job:
    """What a fresh process does once while its memory is watched.

    Parameters
    ----------
    setting : Setting
        The model.
    seconds : float
        Length of the audio.
    package : str
        Whose model.
    work : {'inference', 'training', 'separate'}
        `separate` is `hunterFormsBS.separation.separate`.
    batch, threads : int
        Items in a batch; CPU threads.
    chunk_seconds : float
        Chunk length of `separate`.
    """

    setting: Setting
    seconds: float
    package: Package = OURS
    work: str = "inference"
    batch: int = 1
    threads: int = 2
    chunk_seconds: float = 8.0


def prepare(job: Job) -> Callable[[], object]:
    """Build model and input; return what is left to do."""
    model = build(job.package, job.setting)
    audio = noise(job.seconds, batch=job.batch)
    if job.work == "training":
        return training(model, audio, stems_of_noise(job.seconds, job.setting.stems, batch=job.batch))
    if job.work == "separate":
        chunk = round(job.chunk_seconds * 44100)
        return lambda: separate(cast("Callable[[Tensor], Tensor]", model), audio[0], chunk_size=chunk)
    return inference(model, audio)


def peak_memory(job: Job) -> int | None:
    """Return the bytes by which a fresh process grows at most while it does `job`.

    What it holds before, with the package imported and model and input made, is not counted. None where the system
    keeps no such record (it is Linux's).
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(asdict(job))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"A memory measurement failed: {job}\n{done.stderr}")
    return int(done.stdout.split()[-1])


def _resident(name: str) -> int:
    """Return a field of this process's status, in bytes: VmRSS or, at its highest, VmHWM."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith(name + ":"))


def watch_memory(job: Job) -> int:
    """Do `job` in this process and return the bytes by which it grew at most."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    # What PyTorch and the package import when they are first used is not the model's.
    small = replace(TINY, layout=job.setting.layout, extra=job.setting.extra)
    prepare(replace(job, setting=small, seconds=0.1, chunk_seconds=0.1))()
    work = prepare(job)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from here.
    idle = _resident("VmRSS")
    work()
    return _resident("VmHWM") - idle


# ---- the machine


def machine() -> dict[str, str]:
    """Describe what was measured on, and with which versions."""
    versions = {name: _version(name) for name in ("torch", *PACKAGES)}
    described = {
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }
    if torch.cuda.is_available():
        described["device"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return described


def _version(package: str) -> str:
    try:
        number = version(package)
    except PackageNotFoundError:
        number = "not installed"
    if package == OURS and (commit := _git("rev-parse", "--short", "HEAD")):
        changed = ", changed since" if _git("status", "--porcelain", "--", "hunterFormsBS") else ""
        return f"{number} (checkout at {commit}{changed})"
    return number


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "model name" in fields:
            # Virtual machines may keep the product's name to themselves, but not its generation.
            return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"
    return platform.processor() or platform.machine()


def _job_from(text: str) -> Job:
    values: dict[str, Any] = json.loads(text)
    return Job(**(values | {"setting": Setting(**values["setting"])}))


if __name__ == "__main__":
    print(watch_memory(_job_from(sys.argv[1])))
