"""The parser of every command: help begins with examples, and errors are one line."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from importlib.metadata import version
from typing import Any, Final, NoReturn, Protocol

from hunterFormsBS.console import Console
from hunterFormsBS.failures import UNUSABLE
from hunterFormsBS.printable import say

__all__ = ["EXIT_STATUS", "NAME", "PROGRAM", "Command", "Parser", "ShowVersion", "add_advanced_group", "refuse"]

NAME: Final = "hunterforms"
"""The name to type."""

PROGRAM: Final = "hunterFormsBS"
"""Prefix of every message, and the name of the distribution."""

EXIT_STATUS: Final = """\
exit status: 0 everything succeeded; 1 something failed, and each failure is
named in one line; 2 the command line cannot be used; 130 interrupted with
Ctrl-C, 128 and its number after another signal.
"""

CLOSE: Final = 0.7
"""Least similarity of a suggested word, from 0 to 1."""


class Command(Protocol):
    """A module of `hunterFormsBS.program.commands`. The first line of its docstring is its summary."""

    EXAMPLES: str
    """Command lines, indented by two spaces, and what each does, by six."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Add the arguments; advanced ones in groups of `add_advanced_group`."""
        ...

    def run(self, options: argparse.Namespace, console: Console, /) -> int:
        """Run the command, and return the exit status.

        Raises
        ------
        UsageError
            If the command line cannot be used.
        ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError
            If a file or a setting is invalid: `hunterFormsBS.failures.FAILURES`.
        """
        ...


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    Parameters
    ----------
    name : str
        Of the command.
    command : Command
    advanced : bool, default True
        Whether it has the groups of `add_advanced_group`. A parser without them is for the short help.
    """

    def __init__(self, name: str, command: Command, *, advanced: bool = True) -> None:
        super().__init__(
            prog=f"{NAME} {name}",
            description=f"{summary(command)}\n\nexamples:\n{command.EXAMPLES.rstrip()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        self.name = name
        self.command = command
        self.advanced = advanced
        self.leaves_out = False
        """Whether a group was left out."""
        command.add_arguments(self)
        add = self.add_argument_group("help").add_argument
        add("-h", "--help", action=_ShowHelp, nargs=0, help="explain the options that most people need, and exit")
        add("--help-all", action=_ShowHelp, nargs=0, help="explain all options, and exit")
        add("--version", action=ShowVersion, nargs=0, help="print the version, and exit")
        self.epilog = "--help-all explains the other options." if self.leaves_out else EXIT_STATUS

    @property
    def actions(self) -> list[argparse.Action]:
        """All arguments, including those of groups."""
        return list(self._actions)

    def error(self, message: str) -> NoReturn:
        """Print the message, with suggestions for unknown options, and exit with status 2."""
        options = [option for action in self.actions for option in action.option_strings]
        unrecognized = message if message.startswith("unrecognized") else ""
        for unknown in [match[0] for match in re.finditer(r"--[a-zA-Z-]+", unrecognized)]:
            message += near_miss(unknown, options)
        refuse(f"{message} (--help explains the options)")


def add_advanced_group(
    parser: argparse.ArgumentParser, title: str, description: str | None = None
) -> Any:  # argparse has no public name for it
    """Add and return a group of options that only `--help-all` explains.

    A parser for the short help gets no group.
    """
    if isinstance(parser, Parser) and not parser.advanced:
        parser.leaves_out = True
        parser = argparse.ArgumentParser()
    return parser.add_argument_group(title, description)


def near_miss(word: str, known: list[str]) -> str:
    """Return a clause with the most similar known word; empty if none is similar."""
    return "".join(f"; is {near} meant?" for near in difflib.get_close_matches(word, known, n=1, cutoff=CLOSE))


def refuse(message: str) -> NoReturn:
    """Exit because the command line is invalid."""
    say(f"{PROGRAM}: error: {message}", sys.stderr)
    sys.exit(UNUSABLE)


def summary(command: Command) -> str:
    """Return the summary of a command for the help."""
    return (command.__doc__ or "").partition("\n")[0]


class ShowVersion(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print the version, and exit."""
        say(f"{PROGRAM} {version(PROGRAM)}", sys.stdout)
        parser.exit()


class _ShowHelp(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, _values: object, option_string: str | None = None
    ) -> NoReturn:
        """Print the short or the full help, and exit."""
        if isinstance(parser, Parser):
            # Abbreviations of both, such as --hel, were refused before.
            Parser(parser.name, parser.command, advanced="-all" in (option_string or "")).print_help()
        parser.exit()
