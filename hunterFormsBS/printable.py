"""Text from files and command lines, made safe for messages: bounded, on one line, without control characters.

And sizes as people read them.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from reprlib import Repr
from typing import TextIO

__all__ = ["LISTED", "gigabytes", "gigaflops", "list_some", "megabytes", "printable", "say", "short_repr"]

LONGEST_TEXT = 300
"""Longest name or message, in characters; longer ones lose their middle."""

LONGEST_LINE = 5000
"""Longest line of program output, which may name several files."""

LISTED = 20
"""How many names a message lists before it counts the rest."""

_STEERING = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
"""Unicode categories that are escaped: controls, formats (bidirectional overrides among them), lone surrogates,
private characters, line and paragraph separators."""


def printable(text: object, limit: int = LONGEST_TEXT) -> str:
    """Return text with control characters escaped, and the middle left out where it is longer than the limit.

    Parameters
    ----------
    text : object
        Usually a string or a path; `str` of anything else.
    limit : int
        Characters to return at most.
    """
    source = str(text)
    if len(source) > limit:
        kept = max(1, (limit - 5) // 2)
        source = f"{source[:kept]} ... {source[-kept:]}"
    escaped = source if source.isprintable() else "".join(_escape(character) for character in source)
    return escaped if len(escaped) <= limit else f"{escaped[: max(1, limit - 4)]} ..."


def list_some(names: Sequence[str]) -> str:
    """List names; of many, the first ones and the number of the rest."""
    rest = len(names) - LISTED
    return ", ".join(printable(name, 120) for name in names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def say(text: object, stream: TextIO | None, limit: int = LONGEST_LINE) -> None:
    """Print one line. Never fail, even if the stream is closed or the text cannot be encoded.

    Characters that the stream's encoding lacks are escaped, as control characters are.

    Parameters
    ----------
    text : object
    stream : TextIO or None
        Standard output or standard error; None if the process was started without.
    limit : int
        Characters to print at most.
    """
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = printable(text, limit).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError):
        # Closed, or full. The rest of its buffer would fail again when Python exits.
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def short_repr(value: object, limit: int = LONGEST_TEXT) -> str:
    """Return a printable `repr` for a message, bounded in depth, elements and length."""
    return printable(_REPR.repr(value), limit)


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _STEERING:
        return character
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def megabytes(size: int) -> str:
    """Return a size in MB; nothing where it is 0, which stands for unknown."""
    return f"{size / 1e6:.0f}" if size else ""


def gigabytes(size: int) -> str:
    """Return a size in GB; nothing where it is 0, which stands for unknown."""
    return f"{size / 1e9:.1f}" if size else ""


def gigaflops(operations: int) -> str:
    """Return a number of operations in thousands of millions; nothing where it is 0, which stands for unknown."""
    return f"{operations / 1e9:.0f}" if operations else ""


class _Bounded(Repr):
    """`reprlib.Repr` that never calls the `repr` of unknown objects, which may be of any length."""

    def repr_int(self, x: int, level: int) -> str:
        """Return the size of an integer that is too long to print."""
        return f"<integer of {x.bit_length()} bits>" if x.bit_length() > 200 else super().repr_int(x, level)

    def repr_instance(self, x: object, level: int) -> str:  # noqa: ARG002  # the signature is reprlib's
        """Return the type of an object without a bounded `repr`."""
        if isinstance(x, (bool, bytes, float, complex, type(None))):
            return repr(x if not isinstance(x, bytes) else x[: self.maxstring])
        return f"<{type(x).__name__}>"


_REPR = _Bounded()
_REPR.maxlevel = 3
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxfrozenset = 6
_REPR.maxstring = _REPR.maxother = 120
_REPR.maxlong = 40
