"""Tables that fit a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

__all__ = ["Column", "table", "terminal_width"]

BETWEEN: Final = "  "
UNLIMITED: Final = 10_000
LEAST: Final = 12
"""Least width of a shortened column."""


class Column(NamedTuple):
    """A column of a table.

    Parameters
    ----------
    heading : str
    cells : Sequence[str]
    priority : int, default 0
        If the width does not suffice, columns with the highest number are left out first; those with 0 never.
    is_number : bool, default False
        Whether cells are aligned right.
    may_shrink : bool, default False
        Whether cells may be shortened.
    """

    heading: str
    cells: Sequence[str]
    priority: int = 0
    is_number: bool = False
    may_shrink: bool = False

    @property
    def width(self) -> int:
        """Length of the longest cell."""
        return max(len(cell) for cell in (self.heading, *self.cells))


def terminal_width() -> int:
    """Return the line length of the terminal or COLUMNS; no limit if output goes to a file."""
    return shutil.get_terminal_size(fallback=(UNLIMITED, 24)).columns


def table(columns: Sequence[Column], width: int) -> Iterator[str]:
    """Yield the lines of a table: headings, and one line per row.

    Parameters
    ----------
    columns : Sequence[Column]
        All with the same number of cells.
    width : int
        Line length.
    """
    kept = list(columns)

    def excess() -> int:
        shrunk = sum(min(column.width, LEAST) if column.may_shrink else column.width for column in kept)
        return shrunk + len(BETWEEN) * (len(kept) - 1) - width

    while excess() > 0 and any(column.priority for column in kept):
        kept.remove(max(kept, key=lambda column: column.priority))
    spare = max(0, -excess())
    widths: list[int] = []
    for column in kept:
        least = min(column.width, LEAST) if column.may_shrink else column.width
        wider = min(spare, column.width - least)
        widths.append(least + wider)
        spare -= wider
    for row in zip(*((column.heading, *column.cells) for column in kept), strict=True):
        cells = (
            _fitted(cell, characters, is_number=column.is_number)
            for cell, characters, column in zip(row, widths, kept, strict=True)
        )
        yield BETWEEN.join(cells).rstrip()


def _fitted(cell: str, width: int, *, is_number: bool) -> str:
    short = cell if len(cell) <= width else f"{cell[: width - 3]}..."
    return short.rjust(width) if is_number else short.ljust(width)
