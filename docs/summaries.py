"""What pages have from the package: tables, and links to the reference.

    python docs/summaries.py

writes the tables that pages have between `<!-- NAME -->` and `<!-- /NAME -->` anew. They are committed, so that pages
are complete wherever they are read, and a test compares them with the package.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parent
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
    """Return the table of the checkpoints that have names."""
    from hunterFormsBS.catalogue import entries
    from hunterFormsBS.printable import gigabytes, gigaflops, megabytes

    rows = [
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
            lines += [f"**{stem}**: {score_source(key).name}", ""]
            lines += ["| Name | SDR | SIR | SAR | ISR |", "|---|---:|---:|---:|---:|"]
            for name, values in sorted(rows, key=lambda row: -row[1]["sdr"]):
                lines.append(f"| `{name}` | {_cells(values, metrics)} |")
            lines.append("")
    return "\n".join(lines)


def stated_scores() -> str:
    """Return the table of scores that do not compare with one another."""
    from hunterFormsBS.catalogue import score_source

    rows = ["| Name | Stem | SDR | Bleedless | Fullness | From |", "|---|---|---:|---:|---:|---|"]
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
    from hunterFormsBS.printable import gigaflops, megabytes
    from hunterFormsBS.program.commands.presets import costs_of

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


def arguments() -> str:
    """Return the table of the model's arguments, made from its signature and its docstring."""
    from hunterFormsBS import BandSplitRotator

    defaults = inspect.signature(BandSplitRotator).parameters
    rows = ["| Argument | Default | Effect |", "|---|---|---|"]
    for names, text in described(BandSplitRotator):
        shown = [str(defaults[name]).rpartition(" = ")[2] if " = " in str(defaults[name]) else "" for name in names]
        default = "<br>".join(f"`{one}`" if one else "required" for one in shown)
        rows.append(f"| {'<br>'.join(f'`{name}`' for name in names)} | {default} | {text} |")
    return "\n".join(rows)


def described(documented: type) -> list[tuple[list[str], str]]:
    """Return the parameters that a docstring describes, those described together together, and the descriptions."""
    text = (inspect.getdoc(documented) or "").partition("Parameters\n---")[2].partition("Attributes\n---")[0]
    found = re.findall(r"^(\w[\w, ]*?)(?: : .*)?\n((?: {4}.*\n)+)", text, re.MULTILINE)
    return [(names.split(", "), " ".join(effect.split()).replace("|", "\\|")) for names, effect in found]


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "arguments": ("options.md", arguments),
    "catalogue": ("catalogue.md", catalogue),
    "options": ("commandLine.md", options),
    "presets": ("catalogue.md", presets),
    "scores": ("catalogue.md", scores),
    "stated_scores": ("catalogue.md", stated_scores),
    "variants": ("catalogue.md", variants),
}
"""The page of each table, and what makes it."""


def with_tables(page: str, text: str) -> str:
    """Return a page with its tables as they are now."""
    for name, (where, make) in TABLES.items():
        if where == page:
            pattern = rf"<!-- {name} -->\n(?:.*?<!-- /{name} -->\n)?"
            table = f"<!-- {name} -->\n{make().strip()}\n\n<!-- /{name} -->\n"
            text, count = re.subn(pattern, lambda _, table=table: table, text, flags=re.DOTALL)
            if count != 1:
                raise ValueError(f"{page} has {count} places for the table {name}, and not one: <!-- {name} -->")
    return text


def linked(text: str) -> str:
    """Return a page in which full names of what the reference documents lead there. Blocks of code stay as they are."""
    known = documented_names()

    def link(match: re.Match[str]) -> str:
        name = match["name"] or ""
        return f"{{py:obj}}`{name}`" if name in known or name.rpartition(".")[0] in known else match[0]

    return re.sub(r"^```.*?^```$|`(?P<name>hunterFormsBS(?:\.\w+)+)`", link, text, flags=re.DOTALL | re.MULTILINE)


def documented_names() -> set[str]:
    """Return the full names of modules, functions and classes that pages of the reference document."""
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.rst")]
    modules = {directive["module"] for page in pages for directive in AUTOMODULE.finditer(page)}
    return modules.union(*map(names_of, pages))


def main() -> None:
    """Write all tables."""
    for page in {where for where, _ in TABLES.values()}:
        path = DOCS / page
        path.write_text(with_tables(page, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
