"""List the presets: several checkpoints for one purpose."""

from __future__ import annotations

import argparse

from hunterFormsBS.checkpoint.facts import Preset, entries, presets
from hunterFormsBS.console import Console
from hunterFormsBS.printable import gigabytes, gigaflops, megabytes
from hunterFormsBS.program.tables import Column, table, terminal_width

EXAMPLES = """\
  hunterforms presets
      their names, stems, costs, members and sources

  hunterforms separate song.flac --preset vocal_balanced --output separated
      fetches the members of one, and writes the vocals on which they agree
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each")


def run(_options: argparse.Namespace, console: Console) -> int:
    """List all presets."""
    listed = list(presets().values())
    for preset in listed:
        console.record({**preset._asdict(), **costs_of(preset)})
    costs = [costs_of(preset) for preset in listed]
    columns = [
        Column("PRESET", [preset.name for preset in listed]),
        Column("STEMS", [",".join(preset.stems) for preset in listed]),
        Column("HOW", [preset.ensemble for preset in listed]),
        Column("MB", [megabytes(cost["size"]) for cost in costs], priority=1, is_number=True),
        Column("GFLOP", [gigaflops(cost["flop_per_second"]) for cost in costs], is_number=True),
        Column("GB", [gigabytes(cost["memory"]) for cost in costs], is_number=True),
    ]
    heading, *rows = table(columns, terminal_width())
    console.show(heading)
    for row, preset in zip(rows, listed, strict=True):
        console.show(row)
        for name in preset.checkpoints:
            console.show(f"    {name}")
        console.show(f"    from {preset.source}")
    console.show("")
    console.show("MB: all files; GFLOP: for a second of music; GB: of all members, at most, in float32.")
    return 0


def costs_of(preset: Preset) -> dict[str, int]:
    """Return bytes of the files, operations per second of music, and bytes of memory, summed over the members."""
    members = [entries()[name] for name in preset.checkpoints]
    return {
        "size": sum(entry.size for entry in members),
        "flop_per_second": sum(entry.flop_per_second for entry in members),
        "memory": sum(entry.memory for entry in members),
    }
