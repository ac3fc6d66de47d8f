"""A recipe as a text tree, as a Mermaid graph, and as plain values, with its costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hunterFormsBS.checkpoint.facts import entries
from hunterFormsBS.printable import printable
from hunterFormsBS.recipes.recipe import MIXTURE, REST, Recipe
from hunterFormsBS.recipes.recipePlan import known_settings
from hunterFormsBS.songs.names import key_of

__all__ = ["facts_of", "mermaid", "tree"]


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values, with facts about its models that need no download.

    Returns
    -------
    facts : dict[str, Any]
        For each step `input`, `stems` (None if unknown before a download), and its models: `checkpoint`, `sample_rate`,
        `chunk_size`, `num_overlap` and `bytes`, each None if unknown.
    """
    steps: dict[str, Any] = {}
    for name in recipe.needed(recipe.outputs):
        step = recipe.steps[name]
        settings = [known_settings(model) for model in step.models]
        known = next((each.names for each in settings if each is not None and each.names), None)
        models = [
            {
                "checkpoint": model.checkpoint,
                "sample_rate": each and each.sample_rate,
                "chunk_size": step.separation.get("chunk_size", each and each.parameters.chunk_size),
                "num_overlap": step.separation.get("num_overlap", each and each.parameters.num_overlap),
                "bytes": _bytes_of(model.checkpoint),
            }
            for model, each in zip(step.models, settings, strict=True)
        ]
        stems = known if step.stems is None else [*step.stems]
        steps[name] = {"input": step.input, "stems": stems, "ensemble": step.ensemble, "models": models}
    return {
        "recipe": recipe.name,
        "summary": recipe.summary,
        "steps": steps,
        "outputs": dict(recipe.outputs),
        "sources": [*recipe.sources],
    }


def _bytes_of(checkpoint: str) -> int | None:
    if Path(checkpoint).is_file():
        return Path(checkpoint).stat().st_size
    entry = entries().get(checkpoint)
    return (entry.size or None) if entry is not None else None


def tree(recipe: Recipe) -> list[str]:
    """Return the lines of a tree: below each signal the steps that separate it, and the file that it becomes."""
    facts = facts_of(recipe)
    lines = [f"{recipe.name}: {printable(recipe.summary)}" if recipe.summary else recipe.name, "", MIXTURE]
    lines += _below(MIXTURE, facts, "")
    lines += ["", *_costs(facts)]
    lines += [printable(source, 400) for source in ("", "sources:", *recipe.sources)] if recipe.sources else []
    return lines


def mermaid(recipe: Recipe) -> list[str]:
    """Return the lines of a Mermaid flow chart, which README files and pages can show."""
    lines = ["flowchart LR"]
    for name, step in facts_of(recipe)["steps"].items():
        models = " + ".join(model["checkpoint"] for model in step["models"])
        lines.append(f'    {name}["{name}: {_quoted(models)}"]')
        source, _, stem = step["input"].partition(".")
        lines.append(f"    {source} -->|{_quoted(stem)}| {name}" if stem else f"    {source} --> {name}")
    for number, (file, signal) in enumerate(recipe.outputs.items()):
        step, _, stem = signal.partition(".")
        lines.append(f"    {step} -->|{_quoted(stem)}| file_{number}([{_quoted(file)}])")
    return lines


def _below(signal: str, facts: Mapping[str, Any], indent: str) -> list[str]:
    steps = [(name, step) for name, step in facts["steps"].items() if _same(step["input"], signal)]
    lines: list[str] = []
    for number, (name, step) in enumerate(steps):
        last = number == len(steps) - 1
        models = " + ".join(map(_described, step["models"]))
        kind = f", {step['ensemble']}" if len(step["models"]) > 1 else ""
        lines.append(f"{indent}{'└─' if last else '├─'} {name}: {models}{kind}")
        lines += _signals(name, step, facts, f"{indent}{'   ' if last else '│  '}")
    return lines


def _signals(name: str, step: Mapping[str, Any], facts: Mapping[str, Any], indent: str) -> list[str]:
    """Return the used signals of a step, and what is below them."""
    read = [*(each["input"] for each in facts["steps"].values()), *facts["outputs"].values()]
    stems = [signal.partition(".")[2] for signal in read if signal.partition(".")[0] == name]
    order = [*(step["stems"] or ()), *stems, REST]
    ordered = sorted({key_of(stem): stem for stem in stems}.values(), key=[*map(key_of, order)].index)
    lines: list[str] = []
    for number, stem in enumerate(ordered):
        last = number == len(ordered) - 1
        files = [file for file, signal in facts["outputs"].items() if _same(signal, f"{name}.{stem}")]
        lines.append(f"{indent}{'└─' if last else '├─'} {stem}{''.join(f' → {file}' for file in files)}")
        lines += _below(f"{name}.{stem}", facts, f"{indent}{'   ' if last else '│  '}")
    return lines


def _described(model: Mapping[str, Any]) -> str:
    rate, chunk = model["sample_rate"], model["chunk_size"]
    known = f" ({rate} Hz, chunks of {chunk / rate:.1f} s, overlap {model['num_overlap']:g})" if rate and chunk else ""
    return printable(model["checkpoint"]) + known


def _costs(facts: Mapping[str, Any]) -> list[str]:
    """Return lines about downloads, computation and memory, as far as known."""
    models = [model for step in facts["steps"].values() for model in step["models"]]
    fetched = {model["checkpoint"]: model["bytes"] for model in models}
    sizes = [size for size in fetched.values() if size]
    unknown = len(fetched) - len(sizes)
    weights = f"{sum(sizes) / 1e6:,.0f} MB" + (f" and {unknown} whose size is not known" if unknown else "")
    lines = [f"models: {len(models)} in {len(facts['steps'])} steps; weights: {weights}"]
    if all(model["sample_rate"] and model["chunk_size"] for model in models):
        passes = sum(model["num_overlap"] for model in models)
        # A chunk is computed once the end of the song cannot change it, which takes two more chunks and a step.
        held = sum((2 + 1 / each["num_overlap"]) * each["chunk_size"] / each["sample_rate"] for each in models)
        lines.append(f"computed: {passes:g} seconds of chunks for each second of music")
        lines.append(f"held: about {held:.0f} s of music on its way through the steps, however long the song is")
    return lines


def _same(one: str, other: str) -> bool:
    return key_of(one) == key_of(other)


def _quoted(text: str) -> str:
    """Return text without characters that are special in Mermaid."""
    return "".join(sign if sign.isalnum() or sign in " _-+.:/" else "_" for sign in text)
