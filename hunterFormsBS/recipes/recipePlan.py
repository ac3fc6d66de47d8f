"""A recipe with its checkpoints, checked before a model is loaded, and the graph that songs go through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Unpack, cast

import torch

from hunterFormsBS.checkpoint import CheckpointError
from hunterFormsBS.checkpoint.facts import find_entry
from hunterFormsBS.choices import Ensemble
from hunterFormsBS.console import Console, one_line
from hunterFormsBS.failures import UsageError
from hunterFormsBS.parametersSeparation import KeywordsSeparation
from hunterFormsBS.printable import printable
from hunterFormsBS.recipes.recipe import REST, Model, Recipe, RecipeError, Signal, near
from hunterFormsBS.recipes.recipe import Step as RecipeStep
from hunterFormsBS.songs import graph
from hunterFormsBS.songs.names import key_of, safe_name
from hunterFormsBS.songs.plan import Source, common_stems
from hunterFormsBS.songs.settings import Settings, find_configuration, read_settings, stem_indices

__all__ = ["RecipePlan", "known_settings"]


T = TypeVar("T")


class _Step(NamedTuple):
    """A step of a recipe, and its needed stems."""

    name: str
    stems: list[str]
    sources: list[Source]


class RecipePlan:
    """The plan of a recipe; see `hunterFormsBS.songs.plan.Plan`.

    Parameters
    ----------
    recipe : Recipe
    outputs : Sequence[str] | None, default None
        The outputs to make, in this order; None: all. Steps that these do not need are left out.
    one_model_at_a_time : bool, default False
        Load one model after another and keep stems in temporary files, for devices that cannot hold all models.
    console : Console | None, default None
        Output for remarks on missing files, and on what `one_model_at_a_time` saves.
    **given : Unpack[KeywordsSeparation]
        Settings for all models that override the recipe and the configurations.

    Raises
    ------
    RecipeError
        If the recipe names stems that its models lack, or a requested output does not exist.
    CheckpointError, ImportError, OSError
        If a checkpoint cannot be downloaded or read.
    UsageError
        If the keywords do not fit a model.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        outputs: Sequence[str] | None = None,
        one_model_at_a_time: bool = False,
        console: Console | None = None,
        **given: Unpack[KeywordsSeparation],
    ) -> None:
        self._recipe = recipe
        self._console = Console("hunterFormsBS") if console is None else console
        self._given = given
        self._one_model_at_a_time = one_model_at_a_time
        self._outputs = _chosen(recipe, outputs)
        self.label = safe_name(recipe.name)
        self.model_type = ""
        self.names: list[str] = [safe_name(name) for name in self._outputs]
        names = recipe.needed(self._outputs)
        # What needs no download is checked first.
        known = {name: [known_settings(model) for model in recipe.steps[name].models] for name in names}
        stems = {name: _stems_of(recipe.steps[name], name, found) for name, found in known.items()}
        self._check_signals(names, stems)
        found = self._fetched(names)
        stems = {name: _stems_of(recipe.steps[name], name, [each.settings for each in found[name]]) for name in names}
        self._check_signals(names, stems)
        self._steps = [self._step(name, found[name], stems[name]) for name in names]
        if one_model_at_a_time:
            self._say_what_is_saved()

    def load(self, device: torch.device | str = "cpu") -> tuple[graph.Graph, Sequence[str]]:
        """Load the models; return the graph and the names of its outputs."""
        numbers = {step.name: number for number, step in enumerate(self._steps)}

        def signal(of: Signal) -> graph.Signal:
            stems = [*map(key_of, self._steps[numbers[of.step]].stems)]
            stem = graph.REST if of.stem == REST else stems.index(key_of(safe_name(of.stem)))
            return graph.Signal(numbers[of.step], stem)

        steps: list[graph.Step] = []
        for step in self._steps:
            stated, source = self._recipe.steps[step.name], self._recipe.input_of(step.name)
            combination = graph.Combination(cast("Ensemble", stated.ensemble), stated.weights)
            separators = [self._loaded(step, each, torch.device(device)) for each in step.sources]
            steps.append(graph.Step(separators, combination, None if source is None else signal(source)))
        outputs = [signal(each) for each in self._outputs.values()]
        return graph.Graph(steps, outputs, self._one_model_at_a_time), self.names

    def _signals(self, step: str) -> list[str]:
        """Return the used signals of a step."""
        inputs = (self._recipe.input_of(name) for name in self._recipe.needed(self._outputs))
        return [each.stem for each in (*self._outputs.values(), *inputs) if each is not None and each.step == step]

    def _check_signals(self, names: Sequence[str], stems: dict[str, list[str] | None]) -> None:
        """Refuse stems that a step does not have; None: not known yet."""
        for name in names:
            if (known := stems[name]) is None:
                continue
            if key_of(REST) in map(key_of, known):
                raise RecipeError(f"step {name}: a stem of its model is called {REST}, as what all stems leave is")
            _in_step(name, stem_indices, [stem for stem in self._signals(name) if stem != REST], known, "signals")

    def _fetched(self, names: Sequence[str]) -> dict[str, list[Source]]:
        """Return the files of all checkpoints with their settings; print a line for each missing file."""
        found: dict[str, list[Source]] = {name: [] for name in names}
        remarks: dict[str, None] = {}
        errors: dict[str, Exception] = {}
        for name in names:
            step = self._recipe.steps[name]
            for model in step.models:
                try:
                    file, used, content = find_configuration(Path(model.checkpoint), _path(model.configuration))
                except (CheckpointError, ImportError, OSError) as error:
                    errors.setdefault(one_line(error), error)
                    continue
                settings, said = read_settings(content, **_given(step, self._given))
                remarks |= dict.fromkeys(said)
                found[name].append(Source(file, used, settings, None))
        for text in [*errors][:-1]:
            self._console.tell(f"error: {text}")
        if errors:
            raise [*errors.values()][-1]
        for remark in remarks:
            self._console.warn(remark)
        return found

    def _step(self, name: str, sources: Sequence[Source], stems: list[str] | None) -> _Step:
        """Return a step with only the used stems, or with all if the rest, which depends on all, is used."""
        if stems is None:
            raise RecipeError(
                f"step {name}: no configuration names the stems of its model: list them, such as stems: "
                "[stem_1, stem_2], or give its configuration"
            )
        read = [*map(key_of, map(safe_name, self._signals(name)))]
        if REST not in read:
            stems = [stem for stem in stems if key_of(stem) in read]
        kept: list[Source] = []
        for source in sources:
            chosen = _in_step(name, stem_indices, stems, source.settings.names, "stems")
            kept.append(source._replace(stems=None if stems == source.settings.names else chosen))
        return _Step(name, stems, kept)

    def _loaded(self, step: _Step, source: Source, device: torch.device) -> graph.Separator:
        """Return a model, loaded now or on first use."""

        def load() -> Any:
            model: Any = source.load(device).model
            if model.num_stems != len(step.stems):
                raise CheckpointError(
                    f"{printable(source.checkpoint)} has {model.num_stems} stems, and its configuration names "
                    f"{len(step.stems)}, {', '.join(step.stems)}: list those that step {step.name} has as stems: [...]"
                )
            return model

        return graph.Separator(graph.Deferred(load) if self._one_model_at_a_time else load(), source.settings)

    def _say_what_is_saved(self) -> None:
        sources = [(step, source) for step in self._steps for source in step.sources]
        sizes = [source.checkpoint.stat().st_size / 1e6 for _, source in sources]
        channels = 2 * sum(len(step.stems) for step, _ in sources)
        self._console.remark(
            f"one model at a time: {max(sizes):,.0f} MB of weights are loaded at once, not {sum(sizes):,.0f} MB; "
            f"temporary files in the output folder take {channels * 44100 * 4 * 60 / 1e6:.0f} MB for each minute of "
            "stereo at 44.1 kHz"
        )


def known_settings(model: Model) -> Settings | None:
    """Return the settings of a model's configuration; None if they need a download.

    Raises
    ------
    CheckpointError, OSError
        If a file is invalid or cannot be read.
    """
    if not Path(model.checkpoint).exists():
        entry = find_entry(model.checkpoint)
        return None if entry is None else read_settings(entry.configuration)[0]
    return read_settings(find_configuration(Path(model.checkpoint), _path(model.configuration))[2])[0]


def _stems_of(step: RecipeStep, name: str, found: Sequence[Settings | None]) -> list[str] | None:
    """Return the names of a step's stems; None if not known yet, or not stated."""
    known = [settings for settings in found if settings is not None]
    if len(known) < len(found) or not (step.stems or all(settings.names for settings in known)):
        return None
    return _in_step(name, common_stems, known, step.stems, "stems")[0]


def _in_step(name: str, function: Callable[..., T], *arguments: object) -> T:
    """Call a function, and add the step to its messages about options."""
    try:
        return function(*arguments)
    except UsageError as error:
        raise RecipeError(f"step {name}: {error}") from error


def _chosen(recipe: Recipe, outputs: Sequence[str] | None) -> dict[str, Signal]:
    """Return the requested outputs and their signals."""
    names = [*recipe.outputs]
    if outputs is not None:
        by_key = {key_of(safe_name(name)): name for name in names}
        keys = [key_of(safe_name(name)) for name in outputs]
        for key, name in zip(keys, outputs, strict=True):
            if key not in by_key:
                raise UsageError(f"--stems: the recipe has no output {printable(name)}{near(key, by_key)}")
            if keys.count(key) > 1:
                raise UsageError(f"--stems names {printable(name)} twice: name each once")
        names = [by_key[key] for key in keys]
    return {name: recipe.signal(recipe.outputs[name], f"output {name}") for name in names}


def _given(step: RecipeStep, given: KeywordsSeparation) -> KeywordsSeparation:
    return cast("KeywordsSeparation", {**step.separation, **given})


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
