"""Check what is shipped: the contents of the archives, or an installed copy that has nothing else around it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
import wave
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution, metadata
from pathlib import Path

LICENCES = ("LICENSE", "LICENSE-Wang", "LICENSE-Solovyev")

SEPARATE = ("separate", "song.wav", "--checkpoint", "model.ckpt")
MODEL = "import hunterFormsBS, torch\nmodel = hunterFormsBS.BSRoformer(8, depth=1)\n"

IN_EMPTY = {
    "separation": SEPARATE,
    "hub": (*SEPARATE[:3], "bs_roformer-unwa-revive"),
    "listen": ("listen", "--checkpoint", "model.ckpt", "--no-browser"),
    "export": ("convert", "model.ckpt", "--output", "model.onnx"),
    "train": ("train", "--configuration", "settings.json", "--songs", ".", "--output", "run"),
    "completion": ("completion", "bash"),
    "plot": f"{MODEL}hunterFormsBS.plot_band_masks(model, torch.zeros(1, 8192))",
    "librosa": "import hunterFormsBS\nhunterFormsBS.librosa_filters_mel(44100, 2048, 60)",
}
"""For each extra a command line, or statements, that need it, where there are no packages but those of the wheel."""

AFTER_SEPARATION = {
    "lora": f"{MODEL}from hunterFormsBS.training.adapters import add_adapters\nadd_adapters(model, {{'r': 2}})",
    "optimizers": f"{MODEL}from hunterFormsBS.training.optimizers import make_optimizer\n"
    "make_optimizer(model, 'prodigy', lr=1.0)",
    "losses": "from hunterFormsBS.training.losses import Losses\nLosses({'multistft_loss': 1.0}, sample_rate=44100)",
    "metrics": "from hunterFormsBS.training.metrics import require\nrequire(['bleedless'])",
    "augmentations": "from hunterFormsBS.training.augmentations import MixtureCodec\n"
    "MixtureCodec(1.0, (32, 64), 44100)",
    "examples": "from hunterFormsBS.training.stempegSong import decode\ndecode()",
    "parquet": "from pathlib import Path\nfrom hunterFormsBS.training.scores import writer_for\n"
    "writer_for(Path('scores.parquet'))",
    "wandb": "from hunterFormsBS.training.trainer import require_wandb\nrequire_wandb()",
}
"""The same where the packages of the extra `separation` are."""

WITHOUT_COMMAND = {
    "av": "the former name of `separation`",
    "tags": "stems have no tags without it",
    "sageattention": "attention is computed in another way without it",
    "corpus": "for an example, which is not in the wheel",
    **dict.fromkeys(("bench", "docs", "testing", "dev"), "for a copy of the repository"),
}
"""Extras that no part of the wheel stops without, and why."""


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
    """Run the installed program where no extra is, then what it says to install, then the program again."""
    import hunterFormsBS
    from hunterFormsBS.installation import how_to_install

    program = [sys.executable, "-m", "hunterFormsBS"]
    told = subprocess.run([*program, "doctor", "--json"], capture_output=True, text=True, check=True)
    extras: dict[str, str | None] = json.loads(told.stdout)["extras"]
    known = {*IN_EMPTY, *AFTER_SEPARATION, *WITHOUT_COMMAND}
    if set(extras) != known or set(metadata("hunterFormsBS").get_all("Provides-Extra") or ()) != known:
        raise SystemExit(f"doctor names the extras {sorted(extras)}, and this script {sorted(known)}")
    if any(command != how_to_install(extra) for extra, command in extras.items()):
        raise SystemExit(f"this environment should lack every extra, and doctor say how to install each: {extras}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        model = hunterFormsBS.BandSplitRotator(8, depth=1, freqs_per_bands=(25, 1000), heads=1, num_stems=2)
        hunterFormsBS.save_checkpoint("model.ckpt", model)
        Path("settings.json").write_text("{}", encoding="utf-8")
        with wave.open("song.wav", "wb") as file:
            file.setparams((2, 2, 44100, 0, "NONE", ""))
            file.writeframes(os.urandom(4 * 44100))
        check_command("info", "model.ckpt", status=0)
        check_extras(IN_EMPTY)
        # What separate has just asked for, as it has asked.
        subprocess.run(shlex.split(how_to_install("separation")), check=True)
        subprocess.run([sys.executable, __file__, "separated"], check=True)
        os.chdir(Path(__file__).parent)
    asked = len(IN_EMPTY) + len(AFTER_SEPARATION)
    print(
        f"doctor, info and separate run; where one of {asked} extras is missing, the command that installs it is named"
    )


def check_separated() -> None:
    """Separate the song of the working folder, where the packages for that are and no others."""
    import soundfile

    check_command(*SEPARATE, "--bit-depth", "16", status=0)
    stems = {str(path): soundfile.info(str(path)) for path in Path().rglob("song/*.wav")}
    if [(stem.frames, stem.channels, stem.subtype) for stem in stems.values()] != 2 * [(44100, 2, "PCM_16")]:
        raise SystemExit(f"separate wrote {stems}, not two stems of a second in stereo, of 16 bits")
    check_extras(AFTER_SEPARATION)


def check_command(*arguments: str, status: int) -> str:
    """Run the program in this process, and return what it said on standard error."""
    from hunterFormsBS.__main__ import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        ended = main(arguments)
    if ended != status:
        raise SystemExit(f"{' '.join(arguments)} ended with {ended}, not {status}, and said: {said.getvalue()}")
    return said.getvalue()


def check_extras(asking: Mapping[str, Sequence[str] | str]) -> None:
    """Have each extra asked for by a command line or a statement: it must answer with the command that installs it."""
    from hunterFormsBS.installation import how_to_install

    for extra, asks in asking.items():
        if isinstance(asks, str):
            try:
                exec(asks, {})
                said = "nothing"
            except ImportError as error:
                said = str(error)
        else:
            said = check_command(*asks, status=1)
        if how_to_install(extra) not in said:
            raise SystemExit(f"without {extra}, {asks} said: {said}")


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
    print(f"import hunterFormsBS {import_seconds('hunterFormsBS'):.2f} s")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["archives", *paths]:
            check_archives([Path(path) for path in paths])
        case ["installed"]:
            check_installed()
        case ["separated"]:
            check_separated()
        case _:
            raise SystemExit("usage: check_distribution.py (archives PATH… | installed)")
