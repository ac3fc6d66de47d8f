"""The checkpoints of the command line: found, read as far as needed to plan, and loaded once all is checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.checkpoint.adapters import Adapters, read_adapters, without_adapters
from hunterFormsBS.checkpoint.configuration import Configuration
from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.songs.names import safe_name
from hunterFormsBS.songs.options import Options
from hunterFormsBS.songs.separating import Separator
from hunterFormsBS.songs.settings import Settings, find_configuration, read_settings, stem_indices

__all__ = ["Source", "find_sources", "load_source", "names_loaded"]


class Source(NamedTuple):
    """A checkpoint that is not loaded yet, and which of its stems are asked for."""

    checkpoint: Path
    configuration: Configuration | None
    settings: Settings
    stems: list[int] | None
    adapters: Adapters | None


def find_sources(options: Options, console: Console) -> tuple[list[Source], list[str]]:
    """Return the checkpoints, and the names of the stems that they are to give; none where no configuration tells."""
    count = len(options.checkpoint)
    if len(options.configuration) not in (0, 1, count):
        raise UsageError(
            f"{count} --checkpoint and {len(options.configuration)} --configuration: pass one for each, or one for all"
        )
    if options.stems is not None and len({*map(safe_name, options.stems)}) < len(options.stems):
        raise UsageError(f"--stems {','.join(options.stems)} names a stem twice: name each once")
    if count == 1 and (options.weights is not None or options.ensemble != "avg_wave"):
        raise UsageError("--ensemble and --weights are for several: give --checkpoint more than once")
    if count > 1 and options.lora is not None:
        raise UsageError("--lora is for one --checkpoint: merge it into its own with examples/merge_lora.py")
    if options.weights is not None:
        if len(options.weights) != count:
            raise UsageError(f"{len(options.weights)} --weights for {count} --checkpoint: pass one for each")
        if not options.ensemble.startswith("avg"):
            raise UsageError(f"--ensemble {options.ensemble} has no --weights: use avg_wave or avg_fft")
    configurations: list[Path | None] = [*options.configuration] or [None]
    adapters: Adapters | None = None
    found: list[tuple[Path, Configuration | None, Settings]] = []
    remarks: dict[str, None] = {}
    for checkpoint, configuration in zip(
        options.checkpoint, configurations * (count // len(configurations)), strict=True
    ):
        file, used, content = find_configuration(checkpoint, configuration)
        if options.lora is not None:
            adapters = read_adapters(options.lora, content)
            used = None if used is None else without_adapters(content)
            content = adapters.configuration_of(content)
        settings, warnings = read_settings(content, **options.separation())
        remarks |= dict.fromkeys(warnings)
        found.append((file, used, settings))
    for remark in remarks:
        console.warn(remark)
    names = found[0][2].names if options.stems is None else [*map(safe_name, options.stems)]
    if options.stems is None and any(set(settings.names) != set(names) for _, _, settings in found):
        common = [name for name in names if all(name in settings.names for _, _, settings in found)]
        listed = "; ".join(", ".join(settings.names) or "stems without names" for _, _, settings in found)
        remedy = f"choose with --stems {','.join(common)}" if common else "they have none in common"
        raise UsageError(f"the checkpoints have different stems ({listed}): {remedy}")
    sources: list[Source] = []
    for file, used, settings in found:
        whole = options.stems is None and names == settings.names
        stems = None if whole else stem_indices(options.stems or names or None, settings.names)
        sources.append(Source(file, used, settings, stems, adapters))
    return sources, list(names)


def load_source(source: Source, options: Options, device: torch.device) -> Separator:
    """Load a model, with the heads of the stems that are asked for, and merge adapters into it."""
    whole = source.adapters is not None  # adapters may have been trained on any of the heads
    model = from_checkpoint(
        source.checkpoint,
        source.configuration,
        upstream=options.upstream,
        device="cpu" if whole else device,
        stems=None if whole else source.stems,
    )
    if source.adapters is not None:
        model = source.adapters.merge_into(model).to(device)
    return Separator(model, source.settings, source.stems if whole else None)


def names_loaded(names: Sequence[str], separators: Sequence[Separator], console: Console) -> Sequence[str]:
    """Return the names of the stems that the models have; numbers where the configurations name none or others."""
    counts = {
        separator.model.num_stems if separator.order is None else len(separator.order)  # type: ignore[attr-defined]
        for separator in separators
    }
    if len(counts) > 1:
        raise UsageError(f"the checkpoints have different numbers of stems, {sorted(counts)}: choose with --stems")
    (count,) = counts
    if len(names) == count:
        return names
    if names:
        console.warn(f"the configuration names {', '.join(names)}, but the model has {count} stems: I number them")
    return [f"stem_{number}" for number in range(1, count + 1)]
