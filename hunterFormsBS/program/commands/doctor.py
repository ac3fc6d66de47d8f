"""Print facts about this machine for bug reports."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import cast

from hunterFormsBS.console import Console
from hunterFormsBS.failures import FAILED

EXAMPLES = """\
  hunterforms doctor
      prints versions, devices, kernels, threads and caches, and the command for every package that is missing

  hunterforms doctor --json
      the same as one line of JSON
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(_options: argparse.Namespace, console: Console) -> int:
    """Print the facts, and return 1 if something does not work."""
    from hunterFormsBS.program.diagnosis import diagnose

    groups = diagnose()
    console.record(groups)
    for title, facts in groups.items():
        console.show(title)
        for line in _lines(title, facts):
            console.show(f"  {line}")
    failed = {title: facts["error"] for title, facts in groups.items() if "error" in facts}
    for title, error in failed.items():
        console.tell(f"error: {title}: {error}")
    return FAILED if failed else 0


def _lines(title: str, facts: Mapping[str, object]) -> Iterator[str]:
    if title == "packages":
        yield ", ".join(f"{name} {value}" for name, value in facts.items())
        return
    if complete := [name for name, value in facts.items() if value is None]:
        yield f"complete: {', '.join(complete)}"
    yield from (f"{name}: {_shown(value)}" for name, value in facts.items() if value is not None)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[object]", value))) or "none"
    return f"{value:.2g}" if isinstance(value, float) else str(value)
