"""The tables at the top of reference pages: a line for each function and class, or module, of the page."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re

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

    rows = ["| Name | Stems | Where | MB |", "|---|---|---|---:|"]
    for name, entry in entries().items():
        stems = ", ".join(entry.stems) if len(entry.stems) < 9 else f"{len(entry.stems)} stems"
        address = (
            f"[{entry.repository}](https://huggingface.co/{entry.repository})" if entry.repository else "elsewhere"
        )
        rows.append(f"| `{name}` | {stems} | {address} | {round(entry.size / 1e6) or ''} |")
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
