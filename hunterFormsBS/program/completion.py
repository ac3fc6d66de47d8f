"""Completion of commands, options, values and files in a shell, by argcomplete."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from importlib import import_module
from typing import Any, Final, NoReturn

from hunterFormsBS.checkpoint.facts import entries
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.program.parsing import NAME, Parser

__all__ = ["ASKED", "SHELLS", "complete", "script"]

ASKED: Final = "_ARGCOMPLETE"
"""The environment variable of a request from the shell: the number of words that name the program."""

SHELLS: Final = ("bash", "zsh", "fish", "powershell")


def complete(
    names: Sequence[str], parser_of: Callable[[str], Parser], environment: MutableMapping[str, str] = os.environ
) -> NoReturn:
    """Answer the shell, and end the process.

    Parameters
    ----------
    names : Sequence[str]
        Of the commands, including the default one.
    parser_of : callable
        Returns the parser of a command; for an empty name, that of the default command.
    environment : MutableMapping[str, str], default os.environ
        Contains the line from the shell.
    """
    argcomplete = _argcomplete()
    line, point = environment["COMP_LINE"], int(environment["COMP_POINT"])
    words = line.encode()[:point].decode(errors="ignore").split(" ")
    named = words[1] if len(words) > 2 and words[1] in names else ""
    parser = parser_of(named)
    if named:
        # To argcomplete the command is the program.
        environment[ASKED] = str(int(environment[ASKED]) + 1)
    for action in parser.actions:
        also: Iterable[str] = ()
        if not named and not action.option_strings:
            also = [] if len(words) > 2 else names
        elif action.dest == "checkpoint":
            also = entries()
        if also:
            _offer(action, also, argcomplete)
    argcomplete.autocomplete(parser, always_complete_options=False)
    raise SystemExit(1)


def script(shell: str) -> str:
    """Return the script that makes a shell complete command lines of the program."""
    return str(_argcomplete().shellcode([NAME], shell=shell))


def _offer(action: argparse.Action, values: Iterable[str], argcomplete: Any) -> None:
    """Complete an argument to given values, or to file names."""
    files = argcomplete.FilesCompleter()

    def completions(prefix: str, **about: Any) -> list[str]:
        return [*(value for value in values if value.startswith(prefix)), *files(prefix, **about)]

    vars(action)["completer"] = completions


def _argcomplete() -> Any:
    try:
        return import_module("argcomplete")
    except ImportError as error:
        raise ImportError(f"completion is argcomplete's: {how_to_install('completion')} ({error})") from error
