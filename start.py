#!/usr/bin/env python3
"""Make an environment, install this copy of hunterFormsBS in it, and run something.

    python3 start.py song.wav                  separate a song; it asks what you want to hear
    python3 start.py album/ --checkpoint ...   any command line of the program hunterforms, such as models or listen
    python3 start.py                           train a small model on one song, and separate the song with it
    python3 start.py test                      run the tests that catch nearly everything, in minutes
    python3 start.py test all                  run all of them

Everything is installed to the folder .venv next to this file; installed packages are not installed again. uv is used
where it is there, else pip. Without an NVIDIA GPU, Linux gets the build of PyTorch for the CPU.
"""

# Python 2.7 parses this file, so that an old Python can say what is needed.
from __future__ import print_function

import subprocess
import sys

if sys.version_info < (3, 11):
    try:
        with_uv = ["uv", "run", "--no-project", "--python", ">=3.11", "python", __file__]
        sys.exit(subprocess.call(with_uv + sys.argv[1:]))
    except OSError:
        this = sys.version.split()[0]
        sys.exit("start.py needs Python 3.11 or newer, or uv, which brings its own; this is Python " + this)

import argparse
import hashlib
import os
import shutil
from pathlib import Path
from urllib.request import urlopen

FOLDER = Path(__file__).parent.absolute()
CONSTRAINTS = FOLDER / ".ci" / "constraints.txt"
FOR_CPU = "https://download.pytorch.org/whl/cpu"

# The extras of what is run; everything else is a command line of the program.
EXTRAS = {"quickstart": "examples", "test": "testing,bench", "train": "lora,train", "validate": "lora,train"}
USUAL_EXTRAS = "hub,listen,separation,tags"
TESTS = ["-m", "pytest", "-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]
LEFT_OUT = "Tests marked slow were left out: python3 start.py test all runs them too"
EXHAUSTIVE = "More cases of crossed and random tests: python3 start.py test -m exhaustive"


class Environment:
    """A virtual environment, and the program that installs packages in it."""

    def __init__(self, folder):
        self.folder = folder
        self.python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        self.uv = shutil.which("uv")
        with_pip = [self.python, "-m", "pip", "install", "--disable-pip-version-check"]
        with_uv = [self.uv, "pip", "install", "--python", self.python]
        self.install_command = (with_uv if self.uv else with_pip) + ["-c", str(CONSTRAINTS)]

    def make(self):
        """Make the environment, unless it is there."""
        if Path(self.python).exists():
            return
        print("Making {} with {}".format(self.folder, self.uv or "Python " + sys.version.split()[0]), flush=True)
        with_uv = [self.uv, "venv", "--python", sys.executable]
        command = with_uv if self.uv else [sys.executable, "-m", "venv"]
        if subprocess.call(command + [str(self.folder)]):
            shutil.rmtree(str(self.folder), ignore_errors=True)
            sys.exit("No environment could be made. On Debian and Ubuntu: sudo apt install python3-venv")

    def install(self, extras, torch_index):
        """Install this copy with extras, unless that was done and pyproject.toml is the same since."""
        state = hashlib.sha256((FOLDER / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
        mark = self.folder / ("installed-" + extras)
        if mark.exists() and mark.read_text(encoding="utf-8") == state:
            return
        if torch_index and not self.has("torch"):
            self.install_torch(torch_index)
        print('Installing hunterFormsBS with ".[{}]"'.format(extras), flush=True)
        if subprocess.call(self.install_command + ["-e", ".[{}]".format(extras)], cwd=str(FOLDER)):
            sys.exit("Installing failed; the lines above say why. To begin anew, delete {}".format(self.folder))
        mark.write_text(state, encoding="utf-8")

    def install_torch(self, index):
        """Install PyTorch from an index of its builds; where there is none, leave it to the ordinary registry."""
        print("Installing PyTorch from", index, flush=True)
        if not can_reach(index) or subprocess.call(self.install_command + ["torch", "--index-url", index]):
            print(index, "does not serve it here: taking PyTorch from the ordinary registry", flush=True)

    def has(self, module):
        """Return whether a module is installed."""
        program = "import importlib.util as u; raise SystemExit(u.find_spec({!r}) is None)".format(module)
        return subprocess.call([self.python, "-c", program]) == 0


def can_reach(address):
    """Return whether a web page answers, so that nobody waits for an installer's attempts."""
    try:
        with urlopen(address + "/torch/", timeout=10):
            return True
    except (OSError, ValueError):
        return False


def default_torch_index():
    """Return where the build of PyTorch for this machine is, if the ordinary registry has a much larger one."""
    gpu = shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    return FOR_CPU if sys.platform == "linux" and not gpu else None


def run_tests(python, arguments):
    """Run the quick tests, or all, on every core: one thread in each of several processes, since tests are small."""
    everything = arguments[:1] == ["all"]
    command = [python] + TESTS + (["-m", "not exhaustive"] + arguments[1:] if everything else arguments)
    status = subprocess.call(command, cwd=str(FOLDER), env=dict(os.environ, OMP_NUM_THREADS="1"))
    print(EXHAUSTIVE if everything else LEFT_OUT, flush=True)
    return status


def main():
    """Prepare and run, and return the exit status of what ran."""
    description, _, epilog = __doc__.partition("\n")
    reader = argparse.ArgumentParser(
        usage="python3 start.py [--extras NAMES] [--torch-index URL] [--environment DIR] [SONG | COMMAND] ...",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reader.add_argument("--extras", metavar="NAMES", help="install these as well, with commas between them: see docs")
    reader.add_argument("--torch-index", metavar="URL", help="where to get PyTorch; pytorch.org names one for each GPU")
    reader.add_argument("--environment", metavar="DIR", type=Path, help="default: .venv")
    reader.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = reader.parse_args()

    arguments = options.arguments or ["quickstart"]
    folder = options.environment or Path(os.environ.get("HUNTERFORMSBS_ENVIRONMENT") or FOLDER / ".venv")
    environment = Environment(folder.absolute())
    environment.make()
    extras = [EXTRAS.get(arguments[0], USUAL_EXTRAS)] + ([options.extras] if options.extras else [])
    environment.install(",".join(extras), options.torch_index or default_torch_index())
    if arguments[0] == "test":
        return run_tests(environment.python, arguments[1:])
    # The quickstart is found from anywhere; songs and checkpoints are where the user is.
    quickstart = [str(FOLDER / "examples" / "quickstart.py")] + arguments[1:]
    program = quickstart if arguments[0] == "quickstart" else ["-m", "hunterFormsBS"] + arguments
    return subprocess.call([environment.python] + program)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
