"""Completion of command lines, asked for as a shell asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hunterFormsBS.installation import how_to_install
from hunterFormsBS.program.completion import SHELLS
from hunterFormsBS.program.dispatch import main

pytest.importorskip("argcomplete", reason="the extra completion is not installed")
ROOT = Path(__file__).resolve().parents[2]

ASK = """
eval "$(hunterforms completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_WORDBREAKS=$' \\n' COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
[[ $1 == *' ' ]] && COMP_CWORD=${#COMP_WORDS[@]}
_python_argcomplete hunterforms
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.process
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hunterforms mod", {"models"}),
        ("hunterforms so", {"song.wav"}),
        ("hunterforms --num-o", {"--num-overlap"}),
        ("hunterforms song.wav --form", {"--format"}),
        ("hunterforms song.wav --format ", {"wav", "flac", "mp3", "ogg", "opus"}),
        ("hunterforms doctor --j", {"--json"}),
        ("hunterforms convert --lay", {"--layout"}),
        ("hunterforms convert --layout m", {"msst"}),
        ("hunterforms completion f", {"fish"}),
        ("hunterforms song.wav --checkpoint bs_roformer-unwa-rev", {"bs_roformer-unwa-revive"}),
    ],
)
def test_bash_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "song.wav").touch()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "hunterforms"
    program.write_text(f"#!{sys.executable}\nfrom hunterFormsBS.__main__ import run\nrun()\n")
    program.chmod(0o755)
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}
    command = ["bash", "-c", ASK, "bash", line]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    found = {one.strip() for one in done.stdout.splitlines()} - {""}
    assert {name for name in found if line.split(" ")[-1] in name} >= expected
    assert len(found) < len(expected) + 4, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_that_names_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text, errors = capsys.readouterr()
    assert "hunterforms" in text
    assert "_ARGCOMPLETE" in text
    assert errors == ""


def test_without_the_package_its_command_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["completion", "bash"]) == 1
    assert how_to_install("completion") in capsys.readouterr().err
