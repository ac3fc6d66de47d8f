"""Describe a checkpoint: family, arguments, stems, sample rate."""

from __future__ import annotations

import argparse
from pathlib import Path

from hunterFormsBS.console import Console
from hunterFormsBS.program.parsing import add_advanced_group
from hunterFormsBS.program.values import add_upstream

EXAMPLES = """\
  hunterforms info model.ckpt
      prints what the file and the catalogue say

  hunterforms info model.ckpt --configuration model.yaml --json
      the same with a configuration, as one line of JSON
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add(
        "checkpoint",
        type=Path,
        metavar="FILE",
        help="weights: a file, a name that `hunterforms models` prints, or hub:OWNER/REPOSITORY/FILE",
    )
    add("--configuration", type=Path, metavar="FILE", help="the YAML or JSON file that came with the checkpoint")
    add("--json", action="store_true", help="print one line of JSON")
    add_upstream(add_advanced_group(parser, "how it is read"))


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the description of a checkpoint."""
    from hunterFormsBS.songs.information import show_information

    return show_information(options.checkpoint, console, configuration=options.configuration, upstream=options.upstream)
