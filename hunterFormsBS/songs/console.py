"""What the program says: lines that cannot steer a terminal, and that never make a song fail."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Literal

from hunterFormsBS.printable import printable

LONGEST_LINE = 1000
"""Characters of a message. Paths on standard output are never shortened: other programs read them."""


class Console:
    """Standard output and standard error, either of which may be closed, full, a broken pipe or of a small alphabet.

    A stream that cannot be written falls silent. Characters that its encoding lacks are escaped.

    Parameters
    ----------
    program : str
        Begins every message.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.warnings: list[str] = []
        """The warnings since the list was emptied last."""

    def show(self, text: object) -> None:
        """Print a result on standard output."""
        self.write("stdout", f"{printable(text, sys.maxsize)}\n")

    def show_record(self, record: Mapping[str, object]) -> None:
        """Print a result on standard output as one line of JSON, in ASCII."""
        self.write("stdout", f"{json.dumps(record)}\n")

    def tell(self, text: object) -> None:
        """Print a message on standard error."""
        self.write("stderr", f"{self.program}: {one_line(text)}\n")

    def warn(self, text: object) -> None:
        """Print a warning on standard error, and keep it."""
        self.warnings.append(one_line(text))
        self.tell(f"warning: {one_line(text)}")

    def write(self, name: Literal["stdout", "stderr"], text: str) -> None:
        """Write text as it is, as far as the stream takes it."""
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            return
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except (OSError, ValueError):
            _silence(stream)

    @contextmanager
    def showing_warnings(self) -> Generator[None]:
        """Show Python's warnings in one line, without the line of code that gave them."""
        with warnings.catch_warnings():

            def show(message: object, *_position: object, **_stream: object) -> None:
                self.warn(message)

            warnings.showwarning = show
            yield


def one_line(message: object) -> str:
    """Return a message or an exception as one bounded line."""
    text = str(message)
    if isinstance(message, OSError) and message.filename is not None and message.strerror:
        name = message.filename
        text = f"{os.fsdecode(name) if isinstance(name, (str, bytes)) else name}: {message.strerror}"
    return printable(" ".join(text.split()) or type(message).__name__, LONGEST_LINE)


def keep_standard_streams() -> None:
    """Open what is closed of the three standard streams to nowhere, so that no file of a song becomes one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _silence(stream: io.TextIOBase) -> None:
    """Lead a stream that cannot be written to nowhere, where Python's own flush at the end succeeds."""
    try:
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError):
        return
    os.dup2(nowhere, number)
    os.close(nowhere)
