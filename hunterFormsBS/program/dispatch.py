"""The program: which command runs, and how it ends."""

from __future__ import annotations

import argparse
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NamedTuple, NoReturn, cast

import hunterFormsBS.program.commands as folder
from hunterFormsBS.console import Console, keep_standard_streams, one_line
from hunterFormsBS.failures import FAILED, FAILURES, INTERRUPTED, UsageError
from hunterFormsBS.printable import say
from hunterFormsBS.program import completion
from hunterFormsBS.program.memory import keep_freed_memory
from hunterFormsBS.program.parsing import EXIT_STATUS, NAME, PROGRAM, Command, Parser, near_miss, refuse, summary
from hunterFormsBS.songs.signals import ending_on_signals

__all__ = ["Call", "command_names", "load_command", "main", "overview", "run", "understand"]

DEFAULT: Final = "separate"
"""The default command."""


class Call(NamedTuple):
    """A parsed command line."""

    parser: Parser
    options: argparse.Namespace


def command_names() -> list[str]:
    """Return the names of all commands: the modules in their folder."""
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


def load_command(name: str) -> Command:
    """Import the module of a command."""
    return cast("Command", import_module(f"{folder.__name__}.{name}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    argv : Sequence[str] | None, default None
        Arguments without the program's name. `None`: those of the process.

    Returns
    -------
    status : int
        The exit status: 0, 1 or 130, as in the help.

    Raises
    ------
    SystemExit
        With 2 if the arguments cannot be used, with 0 after `--help` and its like.
    """
    parser, options = understand(sys.argv[1:] if argv is None else argv)
    console = Console(PROGRAM)
    console.quiet, console.json = getattr(options, "quiet", False), getattr(options, "json", False)
    with console.showing_warnings():
        try:
            return parser.command.run(options, console)
        except UsageError as error:
            parser.error(one_line(error))
        except KeyboardInterrupt:
            console.tell("interrupted")
            return INTERRUPTED
        except FAILURES as error:
            console.tell(f"error: {one_line(error)}")
            return FAILED


def run(*first: str) -> NoReturn:
    """Run the program as this process.

    Parameters
    ----------
    *first : str
        Arguments before those of the process.
    """
    arguments = [*first, *sys.argv[1:]]
    keep_standard_streams()
    if completion.ASKED in os.environ:
        completion.complete(command_names(), lambda name: _parser(name or DEFAULT))
    if arguments[:1] != ["listen"]:  # the page in the browser returns memory between songs
        keep_freed_memory()
    with ending_on_signals():
        sys.exit(main(arguments))


def understand(argv: Sequence[str]) -> Call:
    """Parse a command line.

    Parameters
    ----------
    argv : Sequence[str]
        Arguments without the program's name. The first may name the command; otherwise the command is `separate`.

    Raises
    ------
    SystemExit
        With 2 if the arguments cannot be used, with 0 after `--help` and its like.
    """
    first = argv[0] if argv else ""
    if first in ("-h", "--help"):
        for line in overview().splitlines():
            say(line, sys.stdout)
        sys.exit(0)
    names = command_names()
    is_named = first in names
    if not is_named and re.fullmatch(r"[A-Za-z][A-Za-z-]*", first) and not os.path.lexists(first):
        meant = near_miss(first, names)
        if meant:
            refuse(f"{first} is neither a command nor a file{meant} (--help lists the commands)")
    name = first if is_named else DEFAULT
    parser = _parser(name)
    return Call(parser, parser.parse_args(argv[is_named:]))


def _parser(name: str) -> Parser:
    return Parser(name, load_command(name))


def overview() -> str:
    """Return the help of the program: the list of commands."""
    commands = {name: summary(load_command(name)) for name in command_names()}
    width = max(map(len, commands))
    return "\n".join(
        (
            f"usage: {NAME} COMMAND ...",
            f"       {NAME} SONG ... [options of {DEFAULT}]",
            "",
            "Music source separation with band-split rotary transformers.",
            "",
            "commands:",
            *(f"  {name:{width}}  {text}" for name, text in commands.items()),
            "",
            f"{NAME} COMMAND --help shows examples and the usual options, --help-all",
            "all; --version prints the version. A song called as a command is ./SONG.",
            "",
            EXIT_STATUS,
        )
    )
