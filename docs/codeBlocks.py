"""The fenced code blocks of a Markdown page: finding them, and running those in Python.

The blocks of a page are one program: they run from the top and share their names. A block marked `output` says what
the Python block above it prints.
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL)


class CodeBlock(NamedTuple):
    """A fenced block: what stands behind the fence, the line of the page where the code begins, and the code."""

    language: str
    line: int
    code: str


def code_blocks(page: Path) -> list[CodeBlock]:
    """Return the fenced blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    return [
        CodeBlock(match["language"].strip(), text.count("\n", 0, match.start("code")) + 1, match["code"])
        for match in FENCE.finditer(text)
    ]


def run_python(page: Path) -> None:
    """Run the Python blocks of a page in the working directory.

    Raises
    ------
    ValueError
        If a block prints anything else than the `output` block below it says.
    """
    names: dict[str, object] = {"__name__": page.stem}
    printed = ""
    for block in code_blocks(page):
        if block.language == "python":
            # Empty lines before the code give tracebacks the lines of the page.
            program = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            with redirect_stdout(io.StringIO()) as stream:
                exec(program, names)
            printed = stream.getvalue()
        elif block.language == "output" and printed != block.code:
            raise ValueError(f"{page}:{block.line} is not what the block above prints, which is:\n{printed}")
