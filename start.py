#!/usr/bin/env python3
"""Make an environment, install this copy of hunterFormsBS in it, and run something.

    python3 start.py                                       train a small model for three minutes and separate with it
    python3 start.py song.wav --checkpoint model.ckpt ...  separate songs: the arguments of python -m hunterFormsBS
    python3 start.py listen                                separate in the browser
    python3 start.py test                                  run the tests that catch nearly everything, in minutes
    python3 start.py test all                              run all of them

Nothing is installed outside of the folder .venv beside this file, and what is there already is not installed again.
uv is used where it is there, else pip. Without an NVIDIA GPU, Linux gets the build of PyTorch for the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

FOLDER = Path(__file__).parent.absolute()
CONSTRAINTS = FOLDER / ".ci" / "constraints.txt"
FOR_CPU = "https://download.pytorch.org/whl/cpu"

# What is run, and the extras that it needs. Anything else is a command line of the package.
PROGRAMS = {
    "quickstart": ("examples", ["examples/quickstart.py"]),
    "listen": ("listen", ["-m", "hunterFormsBS", "listen"]),
    "test": ("testing,bench", ["-m", "pytest", "-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]),
}
SEPARATION = ("separation", ["-m", "hunterFormsBS"])
LEFT_OUT = "Tests marked slow were left out: python3 start.py test all runs them too"


class Environment:
    """A virtual environment, and the program that installs packages in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.uv = shutil.which("uv")

    @property
    def installer(self) -> list[str]:
        """The command that installs, up to the packages."""
        constraints = ["-c", str(CONSTRAINTS)]
        if self.uv:
            return [self.uv, "pip", "install", "--python", str(self.python), *constraints]
        return [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", *constraints]

    def make(self) -> None:
        """Make the environment, unless it is there."""
        if self.python.exists():
            return
        version = sys.version.split()[0]
        enough = sys.version_info >= (3, 11)
        if not enough and not self.uv:
            raise SystemExit(f"Python 3.11 or newer is needed, or uv, which brings its own; this is Python {version}")
        print(f"Making {self.folder} with {'uv' if self.uv else f'pip and Python {version}'}", flush=True)
        python = sys.executable if enough else ">=3.11"
        command = [self.uv, "venv", "--python", python] if self.uv else [sys.executable, "-m", "venv"]
        done = subprocess.run([*command, str(self.folder)])
        if done.returncode:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise SystemExit("No environment could be made. On Debian and Ubuntu: sudo apt install python3-venv")

    def install(self, extra: str, torch_index: str | None) -> None:
        """Install this copy with an extra, unless that was done and pyproject.toml is the same since."""
        state = hashlib.sha256((FOLDER / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
        mark = self.folder / f"installed-{extra}"
        if mark.exists() and mark.read_text(encoding="utf-8") == state:
            return
        if torch_index and not self.has("torch"):
            self.install_torch(torch_index)
        print(f'Installing hunterFormsBS with ".[{extra}]"', flush=True)
        done = subprocess.run([*self.installer, "-e", f".[{extra}]"], cwd=FOLDER)
        if done.returncode:
            raise SystemExit(f"Installing failed; the lines above say why. To begin anew, delete {self.folder}")
        mark.write_text(state, encoding="utf-8")

    def install_torch(self, index: str) -> None:
        """Install PyTorch from an index of its builds; where there is none, leave it to the ordinary registry."""
        print(f"Installing PyTorch from {index}", flush=True)
        if not can_reach(index) or subprocess.run([*self.installer, "torch", "--index-url", index]).returncode:
            print(f"{index} does not serve it here: taking PyTorch from the ordinary registry", flush=True)

    def has(self, module: str) -> bool:
        """Return whether a module is installed."""
        program = f"import importlib.util as u; raise SystemExit(u.find_spec({module!r}) is None)"
        return subprocess.run([str(self.python), "-c", program]).returncode == 0


def can_reach(address: str) -> bool:
    """Return whether a web page answers, so that nobody waits for an installer's attempts."""
    try:
        with urlopen(f"{address}/torch/", timeout=10):
            return True
    except (URLError, OSError, ValueError):
        return False


def default_torch_index() -> str | None:
    """Return where the build of PyTorch for this machine is, if the ordinary registry has a much larger one."""
    gpu = shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    return FOR_CPU if sys.platform == "linux" and not gpu else None


def main() -> int:
    """Prepare and run, and return the exit status of what ran."""
    description, _, epilog = (__doc__ or "").partition("\n")
    reader = argparse.ArgumentParser(
        usage="python3 start.py [--torch-index URL] [--environment DIR] [quickstart | listen | test | SONG ...] ...",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reader.add_argument("--torch-index", metavar="URL", help="where to get PyTorch; pytorch.org names one for each GPU")
    reader.add_argument("--environment", metavar="DIR", type=Path, help="default: .venv")
    reader.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = reader.parse_args()

    first, *others = options.arguments or ["quickstart"]
    extra, program = PROGRAMS.get(first, SEPARATION)
    folder = options.environment or Path(os.environ.get("HUNTERFORMSBS_ENVIRONMENT") or FOLDER / ".venv")
    environment = Environment(folder.absolute())
    environment.make()
    environment.install(extra, options.torch_index or default_torch_index())
    arguments = others if first in PROGRAMS else options.arguments
    if first == "test":
        return run_tests([str(environment.python), *program], arguments)
    # Programs of this copy are found from anywhere; songs and checkpoints are where the user is.
    program = [str(FOLDER / part) if part.endswith(".py") else part for part in program]
    command = [str(environment.python), *program, *arguments]
    return subprocess.run(command).returncode


def run_tests(command: list[str], arguments: list[str]) -> int:
    """Run the quick tests, or all, on every core: one thread in each of several processes, since tests are small."""
    everything = arguments[:1] == ["all"]
    chosen = ["-m", "", *arguments[1:]] if everything else arguments
    status = subprocess.run([*command, *chosen], cwd=FOLDER, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    if not everything:
        print(LEFT_OUT, flush=True)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
