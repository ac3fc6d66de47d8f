"""What the program says: one line each, on standard output for results and on standard error for everything else."""

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
"""What is known of a song before anything becomes of it."""


class Console:
    """Where the program prints.

    Parameters
    ----------
    program : str
        Begins every message.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.quiet = False
        """Whether only warnings and errors are said."""
        self.json = False
        """Whether standard output is for records, and not for names of files."""
        self.warnings: list[str] = []
        """The warnings since the list was emptied last."""

    @property
    def is_terminal(self) -> bool:
        """Whether somebody sees a progress bar."""
        return sys.stderr is not None and sys.stderr.isatty()

    def tell(self, text: object) -> None:
        """Say something on standard error."""
        say(f"{self.program}: {text}", sys.stderr)

    def remark(self, text: object) -> None:
        """Say something that is no warning, unless the program is to be quiet."""
        if not self.quiet:
            self.tell(text)

    def warn(self, text: object) -> None:
        """Say a warning, and keep it."""
        self.warnings.append(one_line(text))
        self.tell(f"warning: {one_line(text)}")

    def show(self, result: object) -> None:
        """Print a result, such as the name of a file."""
        if not (self.quiet or self.json):
            say(result, sys.stdout)

    def record(self, record: Mapping[str, object]) -> None:
        """Print a result as one line of JSON, in ASCII, if records were asked for."""
        if self.json:
            say(json.dumps(record), sys.stdout, limit=sys.maxsize)

    @contextmanager
    def showing_warnings(self) -> Generator[None]:
        """Show Python's warnings in one line, without the line of code that gave them."""
        with warnings.catch_warnings():

            def show(message: object, *_position: object, **_stream: object) -> None:
                self.warn(message)

            warnings.showwarning = show
            yield


def keep_standard_streams() -> None:
    """Lead standard streams that are closed to nowhere.

    The next file that is opened would have the number of one, and get the messages that libraries in C print there: a
    stem would hold what libmpg123 says about a damaged song.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest number that is free, which is this one.


def one_line(message: object) -> str:
    """Return a message or an exception as one line."""
    if isinstance(message, OSError) and message.filename is not None and message.strerror:
        return f"{message.filename}: {message.strerror}"
    return " ".join(str(message).split()) or type(message).__name__
