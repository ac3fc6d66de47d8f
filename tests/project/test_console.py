"""What programs print: one line each, results apart from messages."""

from __future__ import annotations

import json
import warnings

import pytest

from hunterFormsBS.console import Console, one_line


def test_results_and_messages_go_to_different_streams(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console("program")
    console.show("out/a.wav")
    console.tell("error: b\x1b[2J")
    console.remark("waiting")
    console.record({"song": "a"})
    assert capsys.readouterr() == ("out/a.wav\n", "program: error: b\\x1b[2J\nprogram: waiting\n")


def test_records_take_the_place_of_results_and_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console("program")
    console.json = True
    record = {"outputs": ["\u97f3\n" * 5000]}
    console.show("out/a.wav")
    console.record(record)
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    assert out.isascii()
    assert json.loads(out) == record


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console("program")
    console.quiet = True
    console.show("out/a.wav")
    console.remark("waiting")
    console.warn("a\nb")
    console.tell("error: c")
    assert capsys.readouterr() == ("", "program: warning: a b\nprogram: error: c\n")
    assert console.warnings == ["a b"]


def test_warnings_of_python_take_one_line_and_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console("program")
    with console.showing_warnings():
        warnings.simplefilter("always")
        warnings.warn("inside\nof it", stacklevel=1)
    assert console.warnings == ["inside of it"]
    assert capsys.readouterr().err == "program: warning: inside of it\n"
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", stacklevel=1)
    assert console.warnings == ["inside of it"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.wav"), "a.wav: No such file or directory"),
        (ValueError("a\n  b"), "a b"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_exception_is_one_line(error: Exception, text: str) -> None:
    assert one_line(error) == text
