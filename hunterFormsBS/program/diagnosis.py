"""Facts about the machine and the environment for bug reports."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Final

from hunterFormsBS.installation import how_to_install, is_installed
from hunterFormsBS.printable import printable

__all__ = ["TOLERANCE", "Facts", "diagnose"]

Facts = dict[str, object]
"""Values by name: text, numbers, lists of text; for an extra, None if nothing is missing."""

DISTRIBUTION: Final = "hunterFormsBS"

TOLERANCE: Final = 1e-3
"""Largest allowed difference of kernels from formulas, relative to the largest sample."""

VARIABLES: Final = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HUNTERFORMSBS_REFERENCE",
    "KMP_AFFINITY",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ENABLE_MPS_FALLBACK",
)
"""Environment variables that affect this package and hold no secrets."""


def diagnose() -> dict[str, Facts]:
    """Return facts in groups. A failure becomes the `error` of its group."""
    groups: dict[str, Callable[[], Facts]] = {
        "program": _program,
        "packages": _packages,
        "processor": _processor,
        "pytorch": _pytorch,
        "devices": _devices,
        "kernels": _kernels,
        "caches": _caches,
        "environment": lambda: {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "extras": _extras,
    }
    return {name: _found(find) for name, find in groups.items()}


def _found(find: Callable[[], Facts]) -> Facts:
    # People run this because of broken drivers or half-installed packages: any exception is a finding.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return find()
    except Exception as error:  # noqa: BLE001
        return {"error": printable(f"{type(error).__name__}: {error}")}


def _program() -> Facts:
    return {
        "version": version(DISTRIBUTION),
        "folder": str(Path(__file__).resolve().parents[1]),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "interpreter": sys.executable,
        "system": platform.platform(),
    }


def _packages() -> Facts:
    """Return the version of every package that the distribution or one of its extras needs."""
    names = {match[0] for line in requires(DISTRIBUTION) or () if (match := re.match(r"[\w.-]+", line))}
    versions: Facts = {}
    for name in sorted(names - {DISTRIBUTION}, key=str.lower):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _processor() -> Facts:
    facts: Facts = {"name": _processor_name(), "cores": os.cpu_count()}
    if hasattr(os, "sched_getaffinity"):
        facts["cores of this process"] = len(os.sched_getaffinity(0))
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory"] = _gigabytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return facts


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "model name" in fields:
            # Virtual machines may hide the product's name, but not its generation.
            return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return platform.processor() or platform.machine()


def _pytorch() -> Facts:
    torch: Any = import_module("torch")
    internals: Any = import_module("hunterFormsBS.kernels.internals")
    return {
        "version": torch.__version__,
        "built for": f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else torch.version.hip or "no GPU of NVIDIA or AMD",
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "products in bfloat16": internals.multiplies_bfloat16(),
        "oneDNN": torch.backends.mkldnn.is_available(),
        "operators of oneDNN": internals.onednn() is not None,
        "MKL": torch.backends.mkl.is_available(),
        "threads": torch.get_num_threads(),
        "threads between operators": torch.get_num_interop_threads(),
    }


def _devices() -> Facts:
    torch: Any = import_module("torch")
    devices: Any = import_module("hunterFormsBS.devices")
    facts: Facts = {"auto": str(devices.find_device("auto"))}
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        facts[f"cuda:{number}"] = (
            f"{about.name}, {_gigabytes(about.total_memory)}, capability {about.major}.{about.minor}"
        )
    for name in ("cuda", "mps", "xpu"):
        if (reason := devices.unusable(name)) is None:
            facts.setdefault(f"{name}:0", "usable")
        else:
            facts[name] = f"not usable: {reason}"
    return facts


def _kernels() -> Facts:
    """Run a small model with and without kernels, and compare."""
    torch: Any = import_module("torch")
    seam: Any = import_module("hunterFormsBS.kernels.seam")
    device = import_module("hunterFormsBS.devices").find_device("auto")
    torch.manual_seed(0)
    model = import_module("hunterFormsBS.bandSplitRotator").BandSplitRotator(32, depth=1, num_stems=2, stereo=True)
    model.to(device).eval()
    audio = torch.randn(1, 2, 11025).to(device)
    with torch.inference_mode():
        with seam.reference():
            expected = model(audio)
        start = time.perf_counter()
        with seam.noting_kernels() as taken:
            stems = model(audio)
        seconds = time.perf_counter() - start
    difference = float((stems - expected).abs().max() / expected.abs().max())
    facts: Facts = {
        "on": not seam.is_off(),
        "undocumented parts of PyTorch": seam.internals.can_ask(),
        "tried on": str(device),
        "used": sorted(set(taken)),
        "difference from the formulas": difference,
        "seconds for a quarter of a second of sound": round(seconds, 3),
    }
    if not difference <= TOLERANCE:
        facts["error"] = f"they differ from the formulas by {difference:.2g} of the largest sample"
    return facts


def _caches() -> Facts:
    if not is_installed("hub"):
        return {}
    constants: Any = import_module("huggingface_hub.constants")
    # Weights from the Hub; lists of its files, and weights from elsewhere.
    caches = {"checkpoints": Path(constants.HF_HUB_CACHE), "others": Path(constants.HF_ASSETS_CACHE, DISTRIBUTION)}
    return {name: f"{folder}, {_gigabytes(_size(folder))}" for name, folder in caches.items()}


def _size(folder: Path) -> int:
    """Return the bytes of all files below a folder, counting each file once."""
    found = [os.lstat(os.path.join(root, name)) for root, _, names in os.walk(folder) for name in names]  # noqa: PTH118
    return sum({(one.st_dev, one.st_ino): one.st_size for one in found}.values())


def _extras() -> Facts:
    """Return for each extra None if it is complete, or else the command that completes it."""
    names = metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    return {name: None if is_installed(name) else how_to_install(name) for name in names}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
