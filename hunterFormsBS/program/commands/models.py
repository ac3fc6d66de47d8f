"""List the checkpoints that have names."""

from __future__ import annotations

import argparse
import sys

from hunterFormsBS.checkpoint.facts import entries
from hunterFormsBS.console import Console

EXAMPLES = """\
  hunterforms models
      prints a line for each: its name, its stems, and its address
"""


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add nothing: all of them are printed."""


def run(_options: argparse.Namespace, _console: Console) -> int:
    """Print names, stems and addresses."""
    for name, entry in entries().items():
        address = f"hub:{entry.repository}/{entry.file}" if entry.repository else "by hand"
        sys.stdout.write(f"{name}\t{','.join(entry.stems)}\t{address}\n")
    return 0
