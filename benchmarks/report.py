"""What the benchmarks share at their command lines and in their output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine

Row = Mapping[str, object]


def argument_parser(name: str, description: str, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--rounds", type=_positive, default=rounds, help="measurements of each (default %(default)s)")
    parser.add_argument("--threads", type=_positive, default=2, help="CPU threads (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    parser.add_argument("--tiny", action="store_true", help="tiny models and inputs, to try the benchmark itself out")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


class Report:
    """Tables, printed as they are done and written as JSON at the end.

    Parameters
    ----------
    options : argparse.Namespace
        What `argument_parser` has read; `threads` takes effect here.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        self.markdown: bool = options.markdown
        self.pathFilename: Path | None = options.json
        self.tiny: bool = options.tiny
        self.content: dict[str, Any] = {
            "machine": machine(),
            "options": {name: _plain(value) for name, value in vars(options).items()},
            "tables": {},
        }
        for name, value in self.content["machine"].items():
            print(f"{'- ' if self.markdown else ''}{name}: {value}")
        if self.tiny:
            print("Tiny sizes: the numbers below say nothing.")

    def table(self, title: str, rows: Sequence[Row], numbers: object = None) -> None:
        """Print a table of `rows`, and keep it, with the `numbers` that it was made of, for the file."""
        self.content["tables"][title] = {"rows": rows, "numbers": _plain(numbers)}
        print(f"\n{'### ' if self.markdown else ''}{title}\n")
        print(as_table(rows, markdown=self.markdown), flush=True)

    def finish(self) -> None:
        """Write the file, if one was asked for."""
        if self.pathFilename is not None:
            self.pathFilename.write_text(json.dumps(self.content, indent=1, default=str) + "\n", encoding="utf-8")


def as_table(rows: Sequence[Row], *, markdown: bool) -> str:
    """Format rows, which all have the same keys, as a table with aligned columns."""
    header = list(rows[0])
    cells = [header, *([_text(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    edge, between = ("| ", " | ") if markdown else ("", "  ")
    lines = [
        (edge + between.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + edge[::-1]).rstrip()
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|" if markdown else "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:]])


def mebibytes(size: int | None) -> str:
    """Write a number of bytes in MiB."""
    return "–" if size is None else f"{size / 2**20:.0f}"


def quotient(part: float | None, whole: float | None) -> str:
    """Write `part / whole`, or a dash where one of them was not measured."""
    return "–" if part is None or not whole else f"{part / whole:.2f}"


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (int, float, str, bool)) or value is None else str(value)
