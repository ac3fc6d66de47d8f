"""How the examples end: one line without a file and with a wrong one, and nothing of others' warnings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(
    path.name for path in (ROOT / "examples").glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")
)
# Arguments of which one names no file, and what the line says of it.
WRONG = {
    "quickstart.py": (["--minutes", "many"], "argument --minutes: invalid float value: 'many' (--help explains)"),
    "separate_corpus.py": (
        ["nowhere", "--checkpoint", "nowhere.ckpt", "--output", "out"],
        "nowhere.ckpt: No such file or directory",
    ),
    "separate_onnx.py": (["o.onnx", "nowhere.wav"], "nowhere.wav: No such file or directory"),
    "stempegSong.py": (["/dev/null/songs"], "/dev/null/songs/train/Falcon 69: Not a directory"),
}


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if program == "separate_onnx.py":
        pytest.importorskip("onnxruntime")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / program), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_every_program_is_here() -> None:
    assert sorted(WRONG) == PROGRAMS


@pytest.mark.process
@pytest.mark.parametrize("program", WRONG)
def test_a_file_that_is_not_there_is_said_in_one_line(program: str, tmp_path: Path) -> None:
    arguments, message = WRONG[program]
    done = run(tmp_path, program, *arguments)
    assert done.returncode in {1, 2}
    assert (done.stdout, done.stderr) == ("", f"{program}: error: {message}\n")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("program", [name for name in WRONG if name != "quickstart.py"])
def test_without_a_file_one_line_says_what_is_missing(program: str, tmp_path: Path) -> None:
    done = run(tmp_path, program)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{program}: error: the following arguments are required: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.export
@pytest.mark.process
@pytest.mark.slow
def test_success_prints_what_was_written_and_no_warnings_of_others(tmp_path: Path) -> None:
    model = BandSplitRotator(8, depth=1, stereo=True, heads=1, freqs_per_bands=(25, 1000))
    save_checkpoint(tmp_path / "model.ckpt", model, configuration={"training": {"instruments": ["vocals"]}})
    soundfile.write(tmp_path / "song.wav", np.zeros((5000, 2)), 44100, subtype="FLOAT")
    convert = [sys.executable, "-m", "hunterFormsBS", "convert", "model.ckpt", "--output", "model.onnx"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    exported = subprocess.run(convert, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (exported.returncode, exported.stdout, exported.stderr) == (0, "model.onnx\n", "")
    separated = run(tmp_path, "separate_onnx.py", "model.onnx", "song.wav")
    assert separated.returncode == 0, separated.stderr
    assert separated.stdout == "outputs/vocals.wav\n"


@pytest.mark.process
def test_a_bug_shows_its_traceback_and_a_remark_of_the_package_takes_one_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys, warnings; sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "from endings import run\n"
        "def main():\n"
        "    warnings.warn('a\\nremark')\n"
        "    warnings.warn_explicit('not ours', DeprecationWarning, 'x.py', 1, module='elsewhere')\n"
        "    raise RuntimeError('a bug')\n"
        "run(main)\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.stderr.startswith("program.py: warning: a remark\nTraceback")
    assert done.stderr.endswith("RuntimeError: a bug\n")
    assert "not ours" not in done.stderr
