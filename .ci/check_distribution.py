"""Check what is shipped: the contents of the archives, or an installed copy that has nothing else around it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import time
import wave
import zipfile
from importlib.metadata import distribution
from pathlib import Path

LICENCES = ("LICENSE", "LICENSE-Wang", "LICENSE-Solovyev")


def check_archives(paths: list[Path]) -> None:
    """Look for the type marker and the licences in one wheel and one source distribution."""
    (wheel,) = (path for path in paths if path.suffix == ".whl")
    (source,) = (path for path in paths if path.name.endswith(".tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(source) as packed:
        in_source = {name.partition("/")[2] for name in packed.getnames()}
    folder = next(name.partition("/")[0] for name in in_wheel if name.endswith(".dist-info/METADATA"))
    require("the wheel", {"hunterFormsBS/py.typed", *(f"{folder}/licenses/{name}" for name in LICENCES)} - in_wheel)
    foreign = {name for name in in_wheel if not name.startswith(("hunterFormsBS/", f"{folder}/"))}
    if foreign:
        raise SystemExit(f"the wheel holds what is not the package's: {sorted(foreign)}")
    needed = {"hunterFormsBS/py.typed", "pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", *LICENCES}
    require("the source distribution", needed - in_source)
    print(
        f"{wheel.name}: {len(in_wheel)} files, {source.name}: {len(in_source)} entries; py.typed and licences in both"
    )


def require(where: str, missing: set[str]) -> None:
    """Stop with the names of files that `where` should have held."""
    if missing:
        raise SystemExit(f"{where} lacks {sorted(missing)}")


def import_seconds(module: str) -> float:
    """Time an import in an interpreter of its own, the best of three."""
    seconds: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def check_program() -> None:
    """Ask the installed program about this environment, in which every extra is missing, and about a checkpoint."""
    import json

    import hunterFormsBS

    program = [sys.executable, "-m", "hunterFormsBS"]
    told = subprocess.run([*program, "doctor", "--json"], capture_output=True, text=True, check=True)
    groups = json.loads(told.stdout)
    extras = groups["extras"]
    if "separation" not in extras or any(command is None for command in extras.values()):
        raise SystemExit(f"this environment should lack every extra: {extras}")
    model = hunterFormsBS.BandSplitRotator(8, depth=1, freqs_per_bands=(25, 1000), heads=1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, song = Path(folder, "model.ckpt"), Path(folder, "song.wav")
        hunterFormsBS.save_checkpoint(checkpoint, model)
        with wave.open(str(song), "wb") as file:
            file.setparams((2, 2, 44100, 0, "NONE", ""))
            file.writeframes(bytes(4 * 44100))
        subprocess.run([*program, "info", str(checkpoint)], check=True, stdout=subprocess.DEVNULL)
        command = [*program, str(song), "--checkpoint", str(checkpoint), "--output", folder]
        refused = subprocess.run(command, capture_output=True, text=True)
    # PyTorch warns that it has no NumPy, before.
    last = refused.stderr.strip().rpartition("\n")[2]
    if refused.returncode != 1 or "pip install" not in last:
        raise SystemExit(f"without its packages, separate ended with {refused.returncode} and said: {refused.stderr}")
    print(f"doctor names a command for {len(extras)} extras; separate without its packages: {last}")


def check_installed() -> None:
    """Build a model from the installed wheel, train one step, and look for the files that must come with it."""
    import torch

    import hunterFormsBS

    if "site-packages" not in str(hunterFormsBS.__file__):
        raise SystemExit(f"imported from {hunterFormsBS.__file__}, not from the wheel")
    files = {str(path) for path in distribution("hunterFormsBS").files or ()}
    require(
        "the installed wheel", {name for name in ("py.typed", *LICENCES) if not any(f.endswith(name) for f in files)}
    )

    model = hunterFormsBS.BandSplitRotator(
        16,
        depth=1,
        dim_freqs_in=33,
        dim_head=8,
        freqs_per_bands=(2, 2, 4, 8, 17),
        heads=2,
        multi_stft_hop_size=16,
        multi_stft_resolutions_window_sizes=(64, 32),
        num_stems=2,
        stereo=True,
        stft_hop_length=16,
        stft_n_fft=64,
        stft_win_length=64,
    )
    audio = torch.randn(1, 2, 1000)
    shape = tuple(model(audio).shape)
    if shape != (1, 2, 2, 1000):
        raise SystemExit(f"the model returned {shape}, not (1, 2, 2, 1000)")
    model(audio, target=torch.randn(1, 2, 2, 1000)).backward()
    print(
        f"hunterFormsBS {distribution('hunterFormsBS').version} with torch {torch.__version__}: separated and trained"
    )

    check_program()
    alone, together = import_seconds("torch"), import_seconds("hunterFormsBS")
    print(f"import torch {alone:.2f} s, import hunterFormsBS {together:.2f} s, {together - alone:.2f} s more")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["archives", *paths]:
            check_archives([Path(path) for path in paths])
        case ["installed"]:
            check_installed()
        case _:
            raise SystemExit("usage: check_distribution.py (archives PATH… | installed)")
