"""Output of the program, in single lines: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from hunterFormsBS.printable import say

__all__ = ["RECORD", "Console", "keep_standard_streams", "one_line"]

RECORD: Mapping[str, object] = {
    "song": None,
    "status": None,
    "outputs": {},
    "pictures": {},
    "start": 0.0,
    "duration": None,
    "seconds": None,
    "factor": 1.0,
    "activity": {},
    "warnings": [],
    "error": None,
}
"""Facts about a song before it is separated."""


class Console:
    """The program's output.

    Parameters
    ----------
    program : str
        Prefix of every message.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.quiet = False
        """Whether to print only warnings and errors."""
        self.json = False
        """Whether standard output gets JSON records instead of file names."""
        self.warnings: list[str] = []
        """The warnings since the list was last emptied."""

    @property
    def is_terminal(self) -> bool:
        """Whether a progress bar would be visible."""
        return sys.stderr is not None and sys.stderr.isatty()

    def tell(self, text: object) -> None:
        """Print a message on standard error."""
        say(f"{self.program}: {text}", sys.stderr)

    def remark(self, text: object) -> None:
        """Print a remark that is not a warning, unless the program is quiet."""
        if not self.quiet:
            self.tell(text)

    def warn(self, text: object) -> None:
        """Print a warning, and keep it."""
        self.warnings.append(one_line(text))
        self.tell(f"warning: {one_line(text)}")

    def show(self, result: object) -> None:
        """Print a result, for example a file name."""
        if not (self.quiet or self.json):
            say(result, sys.stdout)

    def record(self, record: Mapping[str, object]) -> None:
        """Print a result as one line of JSON, in ASCII, if records are on."""
        if self.json:
            say(json.dumps(record), sys.stdout, limit=sys.maxsize)

    @contextmanager
    def showing_warnings(self) -> Generator[None]:
        """Print Python's warnings in one line, without source code."""
        with warnings.catch_warnings():

            def show(message: object, *_position: object, **_stream: object) -> None:
                self.warn(message)

            warnings.showwarning = show
            yield


def keep_standard_streams() -> None:
    """Connect closed standard streams to the null device.

    Otherwise the next opened file would get the file descriptor of one, and with it the messages of C libraries: a stem
    would contain what libmpg123 prints about a damaged song.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest free descriptor, which is this one.


def one_line(message: object) -> str:
    """Return a message or an exception as one line."""
    if isinstance(message, OSError) and message.filename is not None and message.strerror:
        return f"{message.filename}: {message.strerror}"
    return " ".join(str(message).split()) or type(message).__name__
