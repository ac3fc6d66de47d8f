"""`start.py`: what it installs, once, and what it runs, with stand-ins for installers and interpreters."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hunterFormsBS.program.dispatch import command_names

ROOT = Path(__file__).resolve().parents[2]
# Nothing listens there.
NOWHERE = "http://127.0.0.1:9/whl/cpu"

pytestmark = [pytest.mark.process, pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")]


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>"$LOG"\n{text}\n')
    path.chmod(0o755)


class Copy:
    """A copy of the project with an environment whose `python` writes down what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        for name in ("start.py", "pyproject.toml", ".ci/constraints.txt"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        # PyTorch is missing: so says what `-c` asks.
        self.python = folder / ".venv" / "bin" / "python"
        program(self.python, '[ "$1" != -c ]')

    def run(self, *arguments: str, index: str = NOWHERE, path: str = "") -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [sys.executable, self.folder / "start.py", "--torch-index", index, *arguments],
            env={"PATH": path, "LOG": str(self.log)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def installs(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if "install" in line.split()]

    def last(self) -> str:
        return self.log.read_text().splitlines()[-1]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "extra", "runs"),
    [
        ([], "examples", "{}/examples/quickstart.py"),
        (["quickstart", "--minutes", "1"], "examples", "{}/examples/quickstart.py --minutes 1"),
        (["listen"], "hub,listen,separation,tags", "-m hunterFormsBS listen"),
        (["train", "songs"], "lora,train", "-m hunterFormsBS train songs"),
        (["--extras", "train,losses", "doctor"], "hub,listen,separation,tags,train,losses", "-m hunterFormsBS doctor"),
        (["test", "-k", "name"], "testing,bench", "-m pytest -n logical --maxprocesses 8 --dist worksteal -k name"),
        (
            ["test", "all", "-x"],
            "testing,bench",
            "-m pytest -n logical --maxprocesses 8 --dist worksteal -m not exhaustive -x",
        ),
        (["é song.mp3", "--tta"], "hub,listen,separation,tags", "-m hunterFormsBS é song.mp3 --tta"),
    ],
)
def test_what_a_program_needs_is_installed_and_it_runs(copy: Copy, arguments: list[str], extra: str, runs: str) -> None:
    done = copy.run(*arguments)
    assert done.returncode == 0, done.stderr
    (install,) = copy.installs()
    assert install.endswith(f"-c {copy.folder}/.ci/constraints.txt -e .[{extra}]")
    assert copy.last() == runs.format(copy.folder)
    assert ("python3 start.py test all" in done.stdout) is (arguments[:1] == ["test"] and "all" not in arguments)


def test_nothing_is_installed_twice_until_the_project_asks_for_something_else(copy: Copy) -> None:
    copy.run("test")
    copy.run("test")
    assert copy.installs() == []
    with (copy.folder / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    copy.run("test")
    assert len(copy.installs()) == 1


def test_an_index_of_pytorch_that_does_not_answer_is_named_and_passed_over(copy: Copy) -> None:
    done = copy.run("test")
    assert f"{NOWHERE} does not serve it here" in done.stdout
    assert [line for line in copy.installs() if "torch" in line.split()] == []


def test_the_index_is_not_asked_where_pytorch_is_installed(copy: Copy) -> None:
    program(copy.python, "")
    assert NOWHERE not in copy.run("test").stdout


def test_pytorch_comes_from_its_index_first(copy: Copy) -> None:
    class Handler(SimpleHTTPRequestHandler):
        """Answers with an empty page."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_port}/whl"
        done = copy.run("test", index=index)
        server.shutdown()
    assert done.returncode == 0
    first, second = copy.installs()
    assert first.endswith(f"torch --index-url {index}")
    assert second.endswith(".[testing,bench]")


def test_a_failing_installer_ends_with_one_line_and_is_tried_again(copy: Copy) -> None:
    program(copy.python, '[ "$1" = -c ]')
    for _ in range(2):
        done = copy.run("test")
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            f"Installing failed; the lines above say why. To begin anew, delete {copy.folder}/.venv"
        ]
        assert len(copy.installs()) == 1


def test_the_exit_status_is_that_of_the_program(copy: Copy) -> None:
    program(copy.python, '[ "$1" != -c ]; [ "$2" != pytest ] || exit 5')
    assert copy.run("test").returncode == 5


def test_uv_makes_the_environment_and_installs_where_it_is_there(copy: Copy) -> None:
    shutil.rmtree(copy.folder / ".venv")
    uv = copy.folder / "programs" / "uv"
    prepared = copy.folder / "prepared"
    program(prepared, '[ "$1" != -c ]')
    # `uv venv --python P FOLDER`
    program(uv, f'[ "$1" != venv ] || {{ /bin/mkdir -p "$4/bin" && /bin/cp {prepared} "$4/bin/python"; }}')
    done = copy.run("test", path=str(uv.parent))
    assert done.returncode == 0, done.stderr
    (install,) = copy.installs()
    assert install.startswith(f"pip install --python {copy.folder}/.venv/bin/python -c ")
    assert copy.last().startswith("-m pytest")


def test_the_extras_are_there() -> None:
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    assert spec is not None
    assert spec.loader is not None
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for needed in [*start.EXTRAS.values(), start.USUAL_EXTRAS]:
        assert set(needed.split(",")) <= extras.keys()
    assert {*start.EXTRAS} - {"quickstart", "test"} <= {*command_names()}


NEWER = (ast.AnnAssign, ast.AsyncFunctionDef, ast.JoinedStr, ast.MatMult, ast.NamedExpr, ast.Nonlocal, ast.YieldFrom)


def test_python_2_7_parses_it_and_says_which_is_needed() -> None:
    source = (ROOT / "start.py").read_text(encoding="utf-8")
    source.encode("ascii")
    for node in ast.walk(ast.parse(source, feature_version=(3, 4))):
        assert not isinstance(node, NEWER), ast.unparse(node)
        if isinstance(node, ast.Raise):
            assert node.cause is None
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            assert not arguments.kwonlyargs
            assert [one.annotation for one in [*arguments.args, *arguments.posonlyargs]] == [None] * len(arguments.args)
            assert node.returns is None
        if isinstance(node, ast.Starred):
            pytest.fail(f"Python 2.7 unpacks only the last arguments of calls: {ast.unparse(node)}")


@pytest.mark.parametrize("has_uv", [False, True])
def test_an_older_python_goes_on_with_uv_or_says_what_is_needed(copy: Copy, has_uv: bool) -> None:
    uv = copy.folder / "programs" / "uv"
    if has_uv:
        program(uv, "")
    code = "import runpy, sys; sys.version_info = (3, 6, 9); sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(copy.folder / "start.py"), "a song.wav"],
        env={"PATH": str(uv.parent), "LOG": str(copy.log)},
        capture_output=True,
        text=True,
    )
    if has_uv:
        assert copy.last() == f"run --no-project --python >=3.11 python {copy.folder}/start.py a song.wav"
        assert done.returncode == 0
    else:
        assert done.stderr.startswith(
            "start.py needs Python 3.11 or newer, or uv, which brings its own; this is Python"
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
