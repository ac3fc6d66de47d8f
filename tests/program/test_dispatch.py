"""The program `hunterforms`: its commands, its help, its errors, and how each of them ends."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from hunterFormsBS.console import Console
from hunterFormsBS.failures import FAILURES, UsageError
from hunterFormsBS.program import commands as folder
from hunterFormsBS.program import dispatch
from hunterFormsBS.program.dispatch import command_names, load_command, main, overview, understand
from hunterFormsBS.program.parsing import EXIT_STATUS, Parser, add_advanced_group, summary

every_command = pytest.mark.parametrize("name", command_names())
WITHOUT = """
import sys, time

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name in {"torch", "numpy", "einops"}:
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refusing())
from hunterFormsBS.__main__ import run
try:
    run()
finally:
    print(time.process_time(), file=sys.stderr)
"""
"""Runs the program where nothing heavy can be imported, and prints the seconds of CPU time that it took."""


def command_that(run: object, examples: str = "  hunterforms one\n      does it\n") -> ModuleType:
    """Return a command whose only usual option is --usual, and whose only advanced one --seldom."""
    command = ModuleType("one", "Does one thing.\n\nAnd this is not part of the summary.")

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--usual", action="store_true", help="often")
        add_advanced_group(parser, "more").add_argument("--seldom", action="store_true", help="now and then")

    vars(command).update(EXAMPLES=examples, add_arguments=add_arguments, run=run)
    return command


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Have one command, `one`, whose `run` a test may replace."""
    made = SimpleNamespace(run=lambda _options, _console: 0)
    command = command_that(lambda options, console: made.run(options, console))
    monkeypatch.setattr(dispatch, "command_names", lambda: ["one"])
    monkeypatch.setattr(dispatch, "load_command", lambda _name: command)
    return made


# ---- commands


def test_every_module_of_the_folder_is_a_command() -> None:
    files = {path.stem for path in Path(folder.__path__[0]).glob("*.py")} - {"__init__"}
    known = {"completion", "convert", "doctor", "info", "listen", "models", "presets", "recipe", "separate"}
    assert known <= files == set(command_names())


@every_command
def test_a_command_is_what_the_convention_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = load_command(name)
    plain = argparse.ArgumentParser()
    command.add_arguments(plain)
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    short = capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help-all"])
    full = capsys.readouterr().out
    assert command.EXAMPLES.rstrip() in short
    assert f"hunterforms {'' if name == 'separate' else name}" in command.EXAMPLES
    assert short.index("examples:") < short.index("help:")
    actions = [action for action in plain._actions if action.dest != "help"]  # pyright: ignore[reportPrivateUsage]
    assert all(action.help for action in actions)
    options = [option for action in actions for option in action.option_strings]
    assert [option for option in options if option not in full] == []
    is_shortened = any(option not in short.partition("help:")[0].partition("\n\n")[2] for option in options)
    assert is_shortened is ("--help-all explains the other options" in short)
    assert EXIT_STATUS.split() == full.split()[-len(EXIT_STATUS.split()) :]


def test_the_overview_names_every_command_and_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^None$|^0$"):
        main(["--help"])
    text = capsys.readouterr().out
    assert text.rstrip() == overview().rstrip()
    for name in command_names():
        assert any(line.split() == [name, *summary(load_command(name)).split()] for line in text.splitlines())
    assert len(text.splitlines()) <= 30
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["--version"], ["models"], ["models", "bs_roformer-unwa-revive"], ["presets"]),
        *(["recipe", "list"], ["recipe", "show", "dry-lead"], ["recipe", "show", "band", "--json"]),
        *([name, "--help-all"] for name in command_names()),
        [__file__],
    ],
)
@pytest.mark.process
def test_no_pytorch_is_imported_before_a_command_needs_it(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True)
    assert done.returncode == (2 if arguments == [__file__] else 0), done.stderr
    assert float(done.stderr.split()[-1]) < 0.3
    assert (done.stdout != "") is (done.returncode == 0)


# ---- which command


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["song.wav", "--output", "x"], "separate"),
        (["--output", "x", "models"], "separate"),
        ([], "separate"),
        (["separate", "song.wav"], "separate"),
        (["models"], "models"),
        (["info", "model.ckpt"], "info"),
        (["./models"], "separate"),
    ],
)
def test_the_first_argument_may_name_the_command(arguments: list[str], name: str) -> None:
    assert understand(arguments).parser.name == name


def test_a_command_that_nearly_exists_is_answered_with_the_one_that_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["seperate", "song.wav"])
    assert capsys.readouterr() == (
        "",
        "hunterFormsBS: error: seperate is neither a command nor a file; is separate meant? "
        "(--help lists the commands)\n",
    )
    Path("seperate").mkdir()
    assert understand(["seperate"]).options.mixtures == [Path("seperate")]


@every_command
def test_options_that_nearly_exist_are_answered_in_one_line_by_every_command(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    required = {
        "train": ["--configuration", "a.yaml", "--songs", "b", "--output", "c"],
        "validate": ["--checkpoint", "a.ckpt", "--songs", "b"],
        "completion": ["bash"],
        "convert": ["x", "--output", "y"],
        "info": ["x"],
        "recipe": ["list"],
    }.get(name, [])
    with pytest.raises(SystemExit, match=r"^2$"):
        main([name, *required, "--versoin"])
    assert capsys.readouterr().err == (
        "hunterFormsBS: error: unrecognized arguments: --versoin; is --version meant? (--help explains the options)\n"
    )


# ---- help


def test_advanced_options_are_parsed_whichever_help_shows_them(one: SimpleNamespace) -> None:
    assert understand(["one", "--seldom"]).options.seldom is True
    usual, everything = (Parser("one", load_one(), advanced=advanced).format_help() for advanced in (False, True))
    assert ("--usual" in usual, "--seldom" in usual) == (True, False)
    assert ("--usual" in everything, "--seldom" in everything) == (True, True)


def load_one() -> ModuleType:
    return command_that(None)


# ---- how a command ends


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_is_one_line_and_status_1(
    failure: type[Exception], one: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_options: object, _console: Console) -> int:
        raise failure("two\nlines")

    one.run = run
    assert main(["one"]) == 1
    assert capsys.readouterr() == ("", "hunterFormsBS: error: two lines\n")


@pytest.mark.parametrize(
    ("ending", "status", "line"),
    [
        (UsageError("a wrong\noption"), 2, "error: a wrong option (--help explains the options)\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (SystemExit(143), 143, ""),
    ],
)
def test_each_way_to_end_has_its_status(
    ending: BaseException, status: int, line: str, one: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_options: object, _console: Console) -> int:
        raise ending

    one.run = run
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["one"]))
    assert ended.value.code == status
    assert capsys.readouterr() == ("", line and f"hunterFormsBS: {line}")


def test_a_bug_shows_its_traceback(one: SimpleNamespace) -> None:
    one.run = lambda _options, _console: {}["nothing"]
    with pytest.raises(KeyError):
        main(["one"])


def test_the_status_of_the_command_is_that_of_the_program(one: SimpleNamespace) -> None:
    one.run = lambda _options, _console: 1
    assert main(["one"]) == 1
