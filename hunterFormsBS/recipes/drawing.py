"""A recipe as a text tree, as a Mermaid graph, and as plain values, with its costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hunterFormsBS.checkpoint.facts import Costs, Entry, find_entry
from hunterFormsBS.choices import BATCH_SIZE, NUM_OVERLAP, SHIFTS
from hunterFormsBS.printable import gigabytes, printable
from hunterFormsBS.recipes.recipe import MIXTURE, REST, Model, Recipe, Step
from hunterFormsBS.songs.names import key_of

__all__ = ["facts_of", "mermaid", "tree"]


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values, with facts about its models that need no download.

    Returns
    -------
    facts : dict[str, Any]
        For each step `input`, `stems` (None if unknown before a download), and its models: `checkpoint`, `sample_rate`,
        `chunk_size`, `num_overlap` and `bytes`, each None if unknown. Models, steps and the recipe have
        `flop_per_second` of stereo music, with all chunks that cover it, and `memory`, the bytes of the weights and the
        chunks of one call, summed over the models; None if that of a model is unknown.
    """
    steps: dict[str, Any] = {}
    for name in recipe.needed(recipe.outputs):
        step = recipe.steps[name]
        found = [_facts_of_model(model, step) for model in step.models]
        known = next((stems for stems, _ in found if stems), None)
        models = [facts for _, facts in found]
        stems = known if step.stems is None else [*step.stems]
        steps[name] = {"input": step.input, "stems": stems, "ensemble": step.ensemble, "models": models}
        steps[name] |= _together(models)
    return {
        "recipe": recipe.name,
        "summary": recipe.summary,
        "steps": steps,
        **_together([*steps.values()]),
        "outputs": dict(recipe.outputs),
        "sources": [*recipe.sources],
    }


def _facts_of_model(model: Model, step: Step) -> tuple[Sequence[str], dict[str, Any]]:
    """Return the names of a model's stems, none if they are not known, and the facts about it."""
    names: Sequence[str] = ()
    rate = chunk = overlap = size = None
    costs = Costs(0, 0)
    if Path(model.checkpoint).exists():
        from hunterFormsBS.recipes.recipePlan import known_settings  # which imports PyTorch

        if (settings := known_settings(model)) is not None:
            names, rate = settings.names, settings.sample_rate
            chunk, overlap = settings.parameters.chunk_size, settings.parameters.num_overlap
        size = Path(model.checkpoint).stat().st_size
    elif (entry := find_entry(model.checkpoint)) is not None:
        names, size = entry.stems, entry.size or None
        if audio := entry.configuration.get("audio"):
            rate, chunk, overlap = audio["sample_rate"], audio["chunk_size"], NUM_OVERLAP
            costs = _costs_in(step, entry)
    return names, {
        "checkpoint": model.checkpoint,
        "sample_rate": rate,
        "chunk_size": step.separation.get("chunk_size", chunk),
        "num_overlap": step.separation.get("num_overlap", overlap),
        "bytes": size,
        **{name: value or None for name, value in costs._asdict().items()},
    }


def _costs_in(step: Step, entry: Entry) -> Costs:
    """Return what a model of the catalogue takes for a stereo song, if the step has the chunks of the catalogue."""
    stated, chunk_size = step.separation, entry.configuration["audio"]["chunk_size"]
    if not entry.memory or stated.get("chunk_size", chunk_size) != chunk_size:
        return Costs(0, 0)
    passes = stated.get("num_overlap", NUM_OVERLAP) * stated.get("shifts", SHIFTS) * (3 if stated.get("tta") else 1)
    # A mono model takes each channel by itself, both at a time.
    channels = 1 if entry.configuration["model"].get("stereo") else 2
    at_a_time = channels * stated.get("batch_size", BATCH_SIZE)
    memory = entry.memory + (at_a_time - 1) * (entry.memory - entry.size)
    return Costs(round(entry.flop_per_second * passes * channels), memory)


def _together(parts: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Return the sums of the costs of parts, None where that of a part is not known."""
    each = {name: [part[name] for part in parts] for name in Costs._fields}
    return {name: None if None in values else sum(values) for name, values in each.items()}


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
    lines += [
        "costs for stereo, with overlapping chunks (computed for float32, not measured):",
        *_costs_of_steps(facts),
    ]
    if all(model["sample_rate"] and model["chunk_size"] for model in models):
        # A chunk is computed once the end of the song cannot change it, which takes two more chunks and a step.
        held = sum((2 + 1 / each["num_overlap"]) * each["chunk_size"] / each["sample_rate"] for each in models)
        lines.append(f"held: about {held:.0f} s of music on its way through the steps, however long the song is")
    return lines


def _costs_of_steps(facts: Mapping[str, Any]) -> list[str]:
    """Return a line for each step, and one for the whole."""
    steps = facts["steps"]
    rows = {**steps, "together": facts} if len(steps) > 1 else steps
    width = max(map(len, rows))
    costs = {name: Costs(row["flop_per_second"] or 0, row["memory"] or 0) for name, row in rows.items()}
    lines = [f"  {name:{width}}  {each}" for name, each in costs.items()]
    models = [model["memory"] for step in steps.values() for model in step["models"]]
    if len(models) > 1 and None not in models:
        lines[-1] += f"; {gigabytes(max(models))} GB with --one-model-at-a-time"
    return lines


def _same(one: str, other: str) -> bool:
    return key_of(one) == key_of(other)


def _quoted(text: str) -> str:
    """Return text without characters that are special in Mermaid."""
    return "".join(sign if sign.isalnum() or sign in " _-+.:/" else "_" for sign in text)
