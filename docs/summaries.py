"""The tables at the top of reference pages: a line for each function and class, or module, of the page."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

AUTOMODULE = re.compile(r"^\.\. automodule:: (?P<module>[\w.]+)(?:\n   :members:(?P<members>[^\n]*))?", re.MULTILINE)


def names_of(page: str) -> list[str]:
    """Return the full names of the functions and classes that a reference page documents by its modules."""
    names: list[str] = []
    for directive in AUTOMODULE.finditer(page):
        module = importlib.import_module(directive["module"])
        members = [name.strip() for name in (directive["members"] or "").split(",") if name.strip()]
        if not members:
            members = list(getattr(module, "__all__", ())) or [
                name
                for name, value in vars(module).items()
                if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
            ]
        names += [f"{module.__name__}.{name}" for name in members if is_summarised(getattr(module, name))]
    return names


def is_summarised(value: object) -> bool:
    """Return whether a value is a function or class; constants are documented below."""
    return inspect.isroutine(value) or inspect.isclass(value)


def with_summary(page: str) -> str:
    """Return a reference page with a table after its title: of its modules if many, else of what is in them."""
    modules = [directive["module"] for directive in AUTOMODULE.finditer(page)]
    names = modules if len(modules) > 6 else [f"~{name}" for name in names_of(page)]
    title, underline, rest = page.split("\n", 2)
    table = [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names)]
    return "\n".join([title, underline, "", *table, rest])


def catalogue() -> str:
    """Return the table of the checkpoints that have names, which a script makes sortable."""
    from hunterFormsBS.catalogue import entries
    from hunterFormsBS.program.tables import gigabytes, gigaflops, megabytes

    rows = [
        "{.sortable}",
        "| Name | Stems | Purpose | By | Date | MB | GFLOP | GB |",
        "|---|---|---|---|---|---:|---:|---:|",
    ]
    for name, entry in entries().items():
        stems = ", ".join(entry.stems) if len(entry.stems) < 9 else f"{len(entry.stems)} stems"
        makers = f"[{', '.join(entry.authors)}]({entry.page})"
        costs = (megabytes(entry.size), gigaflops(entry.flop_per_second), gigabytes(entry.memory))
        rows.append(f"| `{name}` | {stems} | {entry.purpose} | {makers} | {entry.created} | {' | '.join(costs)} |")
    return "\n".join(rows)


def scores() -> str:
    """Return a table of scores for each stem and each test set on which several checkpoints were measured."""
    from hunterFormsBS.catalogue import score_source

    metrics = ("sdr", "sir", "sar", "isr")
    groups: dict[tuple[str, str], list[tuple[str, Mapping[str, float]]]] = defaultdict(list)
    for name, key, stem, values in _published():
        if score_source(key).compares:
            groups[stem, key].append((name, values))
    lines: list[str] = []
    for (stem, key), rows in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        if len(rows) > 1:
            lines += [f"**{stem}**: {score_source(key).name}", "", "{.sortable}"]
            lines += ["| Name | SDR | SIR | SAR | ISR |", "|---|---:|---:|---:|---:|"]
            for name, values in sorted(rows, key=lambda row: -row[1]["sdr"]):
                lines.append(f"| `{name}` | {_cells(values, metrics)} |")
            lines.append("")
    return "\n".join(lines)


def stated_scores() -> str:
    """Return the table of scores that do not compare with one another."""
    from hunterFormsBS.catalogue import score_source

    rows = ["{.sortable}", "| Name | Stem | SDR | Bleedless | Fullness | From |", "|---|---|---:|---:|---:|---|"]
    for name, key, stem, values in _published():
        source = score_source(key)
        where = f"[MVSEP]({source.source})" if source.source.startswith("https:") else source.source
        if not source.compares:
            rows.append(f"| `{name}` | {stem} | {_cells(values, ('sdr', 'bleedless', 'fullness'))} | {where} |")
    return "\n".join(rows)


def _published() -> Iterator[tuple[str, str, str, Mapping[str, float]]]:
    """Yield names of checkpoints, test sets and stems, and their scores."""
    from hunterFormsBS.catalogue import entries

    for name, entry in entries().items():
        for key, stems in entry.scores.items():
            for stem, values in stems.items():
                yield name, key, stem, values


def _cells(values: Mapping[str, float], metrics: Sequence[str]) -> str:
    return " | ".join(f"{values[metric]:.2f}" if metric in values else "" for metric in metrics)


def presets() -> str:
    """Return the table of presets."""
    from hunterFormsBS.catalogue import presets
    from hunterFormsBS.program.commands.presets import costs_of
    from hunterFormsBS.program.tables import gigaflops, megabytes

    rows = ["| Preset | Stems | Checkpoints | Combined by | MB | GFLOP | Source |", "|---|---|---|---|---:|---:|---|"]
    for name, preset in presets().items():
        costs = costs_of(preset)
        members = ", ".join(f"`{one}`" for one in preset.checkpoints)
        sums = f"{megabytes(costs['size'])} | {gigaflops(costs['flop_per_second'])}"
        rows.append(
            f"| `{name}` | {', '.join(preset.stems)} | {members} | `{preset.ensemble}` | {sums} | {preset.source} |"
        )
    return "\n".join(rows)


def variants() -> str:
    """Return the table of variants that are recognised by their keys."""
    from hunterFormsBS.checkpoint.variants import VARIANTS

    rows = ["| Variant | Published by | A key of it | Options here |", "|---|---|---|---|"]
    for variant in VARIANTS:
        here = f"`{variant.options}`" if variant.options else f"not supported. {variant.advice}"
        rows.append(f"| {variant.name} | {variant.published} | `{variant.example}` | {here} |")
    return "\n".join(rows)


def options() -> str:
    """Return the tables of the options of `hunterforms separate`, made from its parser."""
    from hunterFormsBS.program.commands import separate

    parser = argparse.ArgumentParser(add_help=False)
    separate.add_arguments(parser)
    lines: list[str] = []
    for group in parser._action_groups:
        actions = group._group_actions
        titles = {"positional arguments": "Songs", "options": "Files"}
        title = titles.get(group.title or "", (group.title or "").capitalize())
        lines += [f"### {title}", "", *([group.description, ""] if group.description else [])]
        lines += ["| Option | What it does |", "|---|---|"]
        for action in actions:
            name = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar}`"
            value = action.metavar or " / ".join(map(str, action.choices or ()))
            shown = f" `{value}`" if value and action.option_strings and action.nargs != 0 else ""
            lines.append(f"| {name}{shown} | {action.help} |")
        lines.append("")
    return "\n".join(lines)
