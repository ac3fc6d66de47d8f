"""The numbers of a run in a file of its folder, whatever shows them elsewhere: a line of JSON for each entry."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hunterFormsBS.training.states import appearing


class History:
    """Entries of a run, each with the number of updates.

    Parameters
    ----------
    pathFilename : Path
    since : int
        Entries of this update and later ones are removed: what a killed process logged after the state it left.
    """

    def __init__(self, pathFilename: Path, since: int) -> None:
        self.pathFilename = pathFilename
        self._unwritten: list[str] = []
        entries = read_history(pathFilename)
        kept = [entry for entry in entries if entry["update"] < since]
        if len(kept) < len(entries):
            with appearing(pathFilename) as unfinished:
                unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")

    def add(self, values: Mapping[str, float], update: int) -> None:
        """Add an entry. Numbers that are not finite are null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._unwritten.append(json.dumps({"update": update, **finite}))

    def flush(self) -> None:
        """Write what was added. On a full disk it is tried again the next time."""
        try:
            with self.pathFilename.open("a", encoding="utf-8") as file:
                # A line that was cut off, by a full disk or a killed process, ends here.
                file.write("".join(f"\n{line}" for line in self._unwritten))
        except OSError as error:
            warnings.warn(f"{self.pathFilename} cannot be written yet: {error.strerror}", stacklevel=2)
            return
        self._unwritten.clear()


def read_history(pathFilename: Path) -> list[dict[str, Any]]:
    """Return the entries of a file, in order, without lines that were cut off."""
    entries: list[dict[str, Any]] = []
    for line in pathFilename.read_text(encoding="utf-8").splitlines() if pathFilename.exists() else ():
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        entries.append(entry)
    return entries


def curves(entries: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Return for each name the updates and the values of its finite entries."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            if name != "update" and value is not None:
                updates, values = found.setdefault(name, ([], []))
                updates.append(entry["update"])
                values.append(value)
    return found
