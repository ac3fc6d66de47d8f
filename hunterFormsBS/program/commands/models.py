"""List the checkpoints that have names: stems, costs and scores."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from hunterFormsBS.checkpoint.elsewhere import by_hand
from hunterFormsBS.checkpoint.facts import (
    STEMS_ELSEWHERE,
    Entry,
    ScoreSource,
    entries,
    find_entry,
    presets,
    score_source,
)
from hunterFormsBS.console import Console
from hunterFormsBS.printable import gigabytes, gigaflops, megabytes
from hunterFormsBS.program.parsing import near_miss
from hunterFormsBS.program.tables import Column, table, terminal_width

EXAMPLES = """\
  hunterforms models
      a line for each: stems, date, size of the file, cost of a second of music, memory for a chunk

  hunterforms models karaoke
      those that have the word in their names, stems or purpose, or in their names in other programs

  hunterforms models --stem vocals --by sdr --fits 4GB
      vocals within 4 GB, the best score first, one list for each test set

  hunterforms models bs_roformer-unwa-revive
      everything about one, which may go by the name of its file in UVR or audio-separator
"""

METRICS: Final = ("sdr", "bleedless", "fullness", "sir", "sar", "isr")
ORDERS: Final[dict[str, Callable[[Entry], Any]]] = {
    "name": lambda entry: entry.name,
    "date": lambda entry: entry.created,
    "size": lambda entry: entry.size,
    "cost": lambda entry: entry.flop_per_second,
    "memory": lambda entry: entry.memory,
}
UNITS: Final = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


class Selection(NamedTuple):
    """Filters and order of the list.

    Parameters
    ----------
    words : Sequence[str], default ()
        Words that checkpoints must have, or the name of one.
    stem : str | None, default None
        A stem that they must have.
    by : str, default "name"
        One of `ORDERS` or `METRICS`.
    fits : int | None, default None
        Limit of their memory in bytes.
    """

    words: Sequence[str] = ()
    stem: str | None = None
    by: str = "name"
    fits: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("words", nargs="*", metavar="WORD", help="list those with all of these words, or show the one of this name")
    add("--stem", metavar="NAME", help="list those with this stem, such as vocals or instrumental")
    add(
        "--by",
        choices=(*ORDERS, *METRICS),
        default="name",
        help="order; scores are compared within one test set only (default: name)",
    )
    add(
        "--fits",
        type=_bytes,
        metavar="SIZE",
        help="list those whose weights and one chunk take at most SIZE, such as 4GB",
    )
    add("--json", action="store_true", help="print one line of JSON for each")


def run(options: argparse.Namespace, console: Console) -> int:
    """List or show checkpoints."""
    return show(Selection(options.words, options.stem, options.by, options.fits), console)


def show(selection: Selection, console: Console) -> int:
    """List the checkpoints of a selection, or show the only one that a word names, and return the exit status.

    Raises
    ------
    ValueError
        If no checkpoint matches.
    """
    named = find_entry(" ".join(selection.words))
    chosen = [named] if named else sorted(_matching(selection), key=ORDERS.get(selection.by, ORDERS["name"]))
    if console.json:
        for entry in chosen:
            console.record(record_of(entry))
    elif named:
        for line in _shown(named):
            console.show(line)
    else:
        lines = _ranked(chosen, selection) if selection.by in METRICS else table(_columns(chosen), terminal_width())
        for line in lines:
            console.show(line)
        console.show("")
        console.show("MB: the file; GFLOP: for a second of music; GB: the weights and one chunk in float32.")
        console.show("Costs are computed from configurations. `hunterforms models NAME` says whose weights these are.")
    return 0


def record_of(entry: Entry) -> dict[str, object]:
    """Return the facts about a checkpoint except its configuration, with the source of each score."""
    fields = {key.name: getattr(entry, key.name) for key in dataclasses.fields(entry) if key.name != "configuration"}
    scores = [
        {"stem": stem, **values, **score_source(key)._asdict()}
        for key, stems in entry.scores.items()
        for stem, values in (stems or {"": {}}).items()
    ]
    return {**fields, "scores": scores}


def _matching(selection: Selection) -> list[Entry]:
    found = [entry for entry in entries().values() if all(_has(entry, word) for word in selection.words)]
    if selection.words and not found:
        meant = near_miss(selection.words[0], list(entries()))
        raise ValueError(f"no checkpoint has {' and '.join(selection.words)} in its names, stems or purpose{meant}")
    if selection.stem is not None:
        stem = STEMS_ELSEWHERE.get(selection.stem.lower(), selection.stem.lower())
        known = sorted({stem for entry in entries().values() for stem in entry.stems})
        if stem not in known:
            raise ValueError(f"no checkpoint has a stem {selection.stem}{near_miss(stem, known)}")
        found = [entry for entry in found if stem in entry.stems]
    if selection.fits is not None:  # not those of unknown cost
        found = [entry for entry in found if 0 < entry.memory <= selection.fits]
    if not found:
        raise ValueError("no checkpoint matches all of this: leave out a word, --stem or --fits")
    return found


def _has(entry: Entry, word: str) -> bool:
    texts = (entry.name, entry.purpose, *entry.stems, *entry.authors, *entry.known_as)
    return any(word.lower() in text.lower() for text in texts)


def _columns(chosen: Sequence[Entry], *scores: Column) -> list[Column]:
    return [
        *scores,
        Column("NAME", [entry.name for entry in chosen]),
        Column("STEMS", [_stems(entry) for entry in chosen], may_shrink=True),
        Column("PURPOSE", [entry.purpose for entry in chosen], priority=3),
        Column("BY", [", ".join(entry.authors) for entry in chosen], priority=5),
        Column("DATE", [entry.created for entry in chosen], priority=4),
        Column("MB", [megabytes(entry.size) for entry in chosen], priority=2, is_number=True),
        Column("GFLOP", [gigaflops(entry.flop_per_second) for entry in chosen], priority=1, is_number=True),
        Column("GB", [gigabytes(entry.memory) for entry in chosen], is_number=True),
    ]


def _stems(entry: Entry) -> str:
    return ",".join(entry.stems) if len(entry.stems) < 9 else f"{len(entry.stems)} stems"


def _ranked(chosen: Iterable[Entry], selection: Selection) -> Iterator[str]:
    """Yield a table for each stem and test set, best first; and one, by name, of scores that are not comparable."""
    wanted = selection.stem and STEMS_ELSEWHERE.get(selection.stem.lower(), selection.stem.lower())
    groups: dict[tuple[str, ScoreSource | None], list[tuple[float, str, Entry]]] = defaultdict(list)
    without = 0
    for entry in chosen:
        found = [
            (stem, score_source(key), values[selection.by])
            for key, stems in entry.scores.items()
            for stem, values in stems.items()
            if selection.by in values and wanted in (None, stem)
        ]
        without += not found
        for stem, source, value in found:
            groups[stem, source if source.compares else None].append((value, source.source, entry))
    order = sorted(groups, key=lambda group: (group[0], group[1] is None, -len(groups[group])))
    for stem, measured in order:
        rows = groups[stem, measured]
        if measured is not None:
            rows.sort(key=lambda row: -row[0])
            yield f"{stem}: {measured.name}, by {measured.source}, best first"
        else:
            yield f"{stem}: each on a test set of its own, or one that is not stated: these do not compare; by name"
        columns = [Column(selection.by.upper(), [f"{value:.2f}" for value, _, _ in rows], is_number=True)]
        listed = _columns([entry for _, _, entry in rows], *columns)
        if measured is None:
            listed.append(Column("FROM", [where for _, where, _ in rows], priority=1))
        yield from table(listed, terminal_width())
        yield ""
    yield f"{without} without a published {selection.by}{f' of {wanted}' if wanted else ''} are not listed."


def _shown(entry: Entry) -> Iterator[str]:
    """Yield lines about one checkpoint."""
    address = f"hub:{entry.repository}/{entry.file}" if entry.repository else entry.url or by_hand(entry)
    fetched = bool(entry.repository or entry.url)
    chunk = entry.configuration.get("audio", {})
    length = f" of {chunk['chunk_size'] / chunk['sample_rate']:.1f} s" if chunk else ""
    facts = {
        "stems": ", ".join(entry.stems),
        "made by": " and ".join(entry.authors) + (f", {entry.created}" if entry.created else ""),
        "purpose": entry.purpose,
        "published": entry.page,
        "address": address,
        "file": f"{megabytes(entry.size)} MB" if entry.size else "of unknown size",
        "SHA-256": entry.sha256 or f"unknown{': compared with that of the first download' if fetched else ''}",
        "costs": f"{entry.costs}{length} (computed for float32, not measured)" if entry.costs.memory else "unknown",
        "also": ", ".join(entry.known_as) or "no other names",
        "presets": ", ".join(name for name, one in presets().items() if entry.name in one.checkpoints) or "in none",
    }
    yield entry.name
    yield from (f"  {name:10} {text}" for name, text in facts.items())
    for key, stems in entry.scores.items():
        source = score_source(key)
        yield f"  scores: {source.name} ({source.source})"
        for stem, values in stems.items():
            yield f"    {stem:10} {', '.join(f'{metric} {value:.2f}' for metric, value in values.items())}"
        if not stems:
            yield "    are on that page"
    if not entry.scores:
        yield "  scores     none known"


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*([KMG]i?B?)\s*", text, re.IGNORECASE)
    unit = UNITS.get(f"{match[2].upper().removesuffix('B')}B") if match else None
    if match is None or unit is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"must be a size such as 4GB or 800MB, but is {text!r}")
    return int(float(match[1]) * unit)
