"""The plan of a batch, known before a model is loaded, and the models of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.checkpoint.adapters import Adapters, read_adapters, without_adapters
from hunterFormsBS.checkpoint.configuration import Configuration
from hunterFormsBS.choices import Upstream
from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.songs.graph import Combination, Graph, Separator
from hunterFormsBS.songs.names import safe_name
from hunterFormsBS.songs.options import Options
from hunterFormsBS.songs.settings import Settings, find_configuration, read_settings, stem_indices

__all__ = ["Checkpoints", "Plan", "Source", "common_stems"]


class Plan(Protocol):
    """How songs become files."""

    label: str
    """The models in names of files."""
    model_type: str
    """What MSST calls the kind of model; empty if that is not known."""
    names: list[str]
    """Of the files of each song; empty while only the models tell how many there are."""

    def load(self, device: torch.device) -> tuple[Graph, Sequence[str]]:
        """Load the models; return the graph that songs go through, and the names of its outputs."""
        ...


class Source(NamedTuple):
    """A checkpoint that is not loaded yet, and which of its stems are asked for."""

    checkpoint: Path
    configuration: Configuration | None
    settings: Settings
    stems: list[int] | None
    adapters: Adapters | None = None

    def load(self, device: torch.device, upstream: Upstream | None = None) -> Separator:
        """Load the model with the heads that are asked for."""
        whole = self.adapters is not None  # adapters may have been trained on any of the heads
        model = from_checkpoint(
            self.checkpoint,
            self.configuration,
            upstream=upstream,
            device="cpu" if whole else device,
            stems=None if whole else self.stems,
        )
        if self.adapters is not None:
            model = self.adapters.merge_into(model).to(device)
        return Separator(model, self.settings, self.stems if whole else None)


class Checkpoints:
    """The plan of a command line without a recipe: its checkpoints.

    Raises
    ------
    UsageError
        If options contradict each other or the checkpoints.
    CheckpointError, ImportError, OSError
        If a file cannot be fetched or read.
    """

    def __init__(self, options: Options, console: Console) -> None:
        _check(options)
        self._options = options
        self._console = console
        self._sources, self.names = _sources(options, console)
        self.label = safe_name("+".join(source.checkpoint.stem for source in self._sources))
        self.model_type = "+".join(dict.fromkeys(source.settings.model_type for source in self._sources))

    def load(self, device: torch.device) -> tuple[Graph, Sequence[str]]:
        """Load the models; return the graph of one step, and the names of its outputs."""
        options = self._options
        separators = [source.load(device, options.upstream) for source in self._sources]
        names = _names_loaded(self.names, separators, self._console)
        return Graph.of(separators, Combination(options.ensemble, options.weights)), names


def common_stems(
    found: Sequence[Settings], wanted: Sequence[str] | None, option: str = "--stems"
) -> tuple[list[str], list[list[int] | None]]:
    """Return the names of the stems that several models are to give, and the numbers of these in each; None: all.

    If none are `wanted`, all stems of the models must be the same.

    Raises
    ------
    UsageError
        If a stem is asked for twice, if a model lacks one, or if the models have different ones.
    """
    if wanted is not None and len({*map(safe_name, wanted)}) < len(wanted):
        raise UsageError(f"{option} {','.join(wanted)} names a stem twice: name each once")
    names = found[0].names if wanted is None else [*map(safe_name, wanted)]
    if wanted is None and any(set(settings.names) != set(names) for settings in found):
        common = [name for name in names if all(name in settings.names for settings in found)]
        listed = "; ".join(", ".join(settings.names) or "stems without names" for settings in found)
        remedy = f"choose with {option} {','.join(common)}" if common else "they have none in common"
        raise UsageError(f"the checkpoints have different stems ({listed}): {remedy}")
    return [*names], [
        None
        if wanted is None and names == settings.names
        else stem_indices(wanted or names or None, settings.names, option)
        for settings in found
    ]


def _check(options: Options) -> None:
    """Refuse options that contradict each other."""
    count = len(options.checkpoint)
    if len(options.configuration) not in (0, 1, count):
        raise UsageError(
            f"{count} --checkpoint and {len(options.configuration)} --configuration: pass one for each, or one for all"
        )
    if count == 1 and (options.weights is not None or options.ensemble != "avg_wave"):
        raise UsageError("--ensemble and --weights are for several: give --checkpoint more than once")
    if count > 1 and options.lora is not None:
        raise UsageError("--lora is for one --checkpoint: merge it into its own with `hunterforms convert --lora`")
    if options.weights is not None:
        if len(options.weights) != count:
            raise UsageError(f"{len(options.weights)} --weights for {count} --checkpoint: pass one for each")
        if not options.ensemble.startswith("avg"):
            raise UsageError(f"--ensemble {options.ensemble} has no --weights: use avg_wave or avg_fft")


def _sources(options: Options, console: Console) -> tuple[list[Source], list[str]]:
    """Return the checkpoints, and the names of the stems that they are to give; none where no configuration tells."""
    configurations: list[Path | None] = [*options.configuration] or [None]
    adapters: Adapters | None = None
    found: list[tuple[Path, Configuration | None, Settings]] = []
    remarks: dict[str, None] = {}
    for checkpoint, configuration in zip(
        options.checkpoint, configurations * (len(options.checkpoint) // len(configurations)), strict=True
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
    names, numbers = common_stems([settings for _, _, settings in found], options.stems)
    sources = [Source(*each, stems, adapters) for each, stems in zip(found, numbers, strict=True)]
    return sources, names


def _names_loaded(names: Sequence[str], separators: Sequence[Separator], console: Console) -> Sequence[str]:
    """Return the names of the stems that the models have; numbers where the configurations name none or others."""
    models: list[Any] = [separator.model for separator in separators]
    counts: set[int] = {
        model.num_stems if separator.order is None else len(separator.order)
        for model, separator in zip(models, separators, strict=True)
    }
    if len(counts) > 1:
        raise UsageError(f"the checkpoints have different numbers of stems, {sorted(counts)}: choose with --stems")
    (count,) = counts
    if len(names) == count:
        return names
    if names:
        console.warn(f"the configuration names {', '.join(names)}, but the model has {count} stems: they are numbered")
    return [f"stem_{number}" for number in range(1, count + 1)]
