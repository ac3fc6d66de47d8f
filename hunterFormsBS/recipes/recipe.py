"""Recipes: steps with models, their inputs, and the signals that are output."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple, cast

from hunterFormsBS.choices import ENSEMBLES
from hunterFormsBS.limits import MOST_STEPS
from hunterFormsBS.printable import short_repr
from hunterFormsBS.separationValues import check_separation
from hunterFormsBS.songs.names import key_of, safe_name

__all__ = ["MIXTURE", "REST", "SEPARATION", "Model", "Recipe", "RecipeError", "Signal", "Step", "near"]

MIXTURE = "mixture"
REST = "rest"
SEPARATION = ("chunk_size", "num_overlap", "batch_size", "tta", "shifts", "blend")
"""Settings of a step: fields of `ParametersSeparation`."""


class RecipeError(ValueError):
    """An invalid recipe; the message says where and what to do."""


class Model(NamedTuple):
    """A checkpoint in a recipe.

    Parameters
    ----------
    checkpoint : str
        A file, a name of the catalogue, or `hub:OWNER/REPOSITORY/FILE`.
    configuration : str | None
        Its configuration file.
    """

    checkpoint: str
    configuration: str | None = None


class Signal(NamedTuple):
    """A stem of a step, or its rest: the input of the step minus all of its stems."""

    step: str
    stem: str

    def __str__(self) -> str:
        return f"{self.step}.{self.stem}"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One model, or several with the same stems, whose estimates are combined.

    Parameters
    ----------
    models : str | Path | Model | Sequence of these
        Checkpoints.
    input : str, default "mixture"
        The signal to separate: the mixture, `STEP.STEM` or `STEP.rest`.
    stems : Sequence[str] | None, default None
        The stems of the step; None: all stems of the models. The rest is the input minus these.
    ensemble : str, default "avg_wave"
        How the stems of several models are combined: see `hunterFormsBS.ensemble.combine`.
    weights : Sequence[float] | None, default None
        One for each model, with an ensemble of averages.
    separation : Mapping[str, Any], default {}
        Fields of `ParametersSeparation` that override the models' configurations: `chunk_size`, `num_overlap`,
        `batch_size`, `tta`, `shifts` and `blend`.

    Raises
    ------
    RecipeError
        If a value cannot be used.
    """

    models: Any
    input: str = MIXTURE
    stems: Sequence[str] | None = None
    ensemble: str = "avg_wave"
    weights: Sequence[float] | None = None
    separation: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Refuse invalid values, and normalise the models."""
        object.__setattr__(self, "models", _models(self.models))
        if type(self.input) is not str:
            raise RecipeError(f"`input` must be {MIXTURE}, STEP.STEM or STEP.{REST}: received {short_repr(self.input)}")
        if self.stems is not None:
            object.__setattr__(self, "stems", _texts("stems", self.stems))
        if self.ensemble not in ENSEMBLES:
            raise RecipeError(f"`ensemble` must be one of {', '.join(ENSEMBLES)}: received {short_repr(self.ensemble)}")
        self._check_weights()
        for name in self.separation:
            if name not in SEPARATION:
                raise RecipeError(f"`separation` has no {short_repr(name)}{near(name, SEPARATION)}")
        try:
            check_separation(**self.separation)
        except (TypeError, ValueError) as error:
            raise RecipeError(str(error)) from error

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        weights: Any = self.weights
        if not isinstance(weights, (list, tuple)) or not all(
            type(weight) in (int, float) and 0 <= weight < math.inf for weight in cast("Sequence[Any]", weights)
        ):
            raise RecipeError(
                f"`weights` must be a list of numbers, none below zero: received {short_repr(self.weights)}"
            )
        if len(self.weights) != len(self.models) or not sum(self.weights):
            raise RecipeError(
                f"`weights` must be one for each of {len(self.models)} models, one of them above zero: received "
                f"{short_repr(list(self.weights))}"
            )
        if not self.ensemble.startswith("avg"):
            raise RecipeError(f"`weights` are for avg_wave and avg_fft, and `ensemble` is {self.ensemble}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Several models in one run, as a graph of steps.

    Parameters
    ----------
    steps : Mapping[str, Step]
        By their names, in any order.
    outputs : Mapping[str, str]
        The file names and their signals: `STEP.STEM` or `STEP.rest`.
    name : str, default "recipe"
        Its name in messages and as `{model}` in file names.
    summary : str, default ""
        Its purpose, in one line.
    sources : Sequence[str], default ()
        Sources of its models and of the order of its steps.

    Raises
    ------
    RecipeError
        If a signal names an unknown step, steps depend on each other in a circle, no output needs a step, or two
        outputs would be one file.
    """

    steps: Mapping[str, Step]
    outputs: Mapping[str, str]
    name: str = "recipe"
    summary: str = ""
    sources: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse an invalid graph."""
        if not 0 < len(self.steps) <= MOST_STEPS:
            raise RecipeError(f"`steps` must be 1 to {MOST_STEPS} steps: received {len(self.steps)}")
        for name in self.steps:
            if not re.fullmatch(r"[\w-]{1,60}", str(name)) or name == MIXTURE:
                raise RecipeError(
                    f"{short_repr(name)} cannot be the name of a step: use letters, digits, _ and -, and not {MIXTURE}"
                )
        inputs = {name: self.input_of(name) for name in self.steps}
        sorter = TopologicalSorter({name: () if signal is None else (signal.step,) for name, signal in inputs.items()})
        try:
            sorter.prepare()
        except CycleError as error:
            circle = " from ".join(cast("list[str]", error.args[1])[::-1])
            raise RecipeError(f"steps take their inputs from each other in a circle: {circle}") from None
        self._check_outputs()
        if unused := [name for name in self.steps if name not in self.needed(self.outputs)]:
            raise RecipeError(
                f"no output needs the step {', '.join(unused)}: name one of its stems or its {REST} as an output, or "
                "leave the step out"
            )

    def _check_outputs(self) -> None:
        if not self.outputs:
            raise RecipeError(f"`outputs` must be names of files and their signals, STEP.STEM or STEP.{REST}")
        names: dict[str, str] = {}
        for name, text in self.outputs.items():
            self.signal(text, f"output {name}")
            other = names.setdefault(key_of(safe_name(name)), name)
            if other != name:
                raise RecipeError(f"the outputs {other} and {name} would be one file: give them different names")

    def input_of(self, name: str) -> Signal | None:
        """Return the signal that a step separates; None is the mixture."""
        text = self.steps[name].input
        return None if text == MIXTURE else self.signal(text, f"step {name}")

    def signal(self, text: object, owner: str) -> Signal:
        """Return the signal that a text names; `owner` names it in messages.

        Raises
        ------
        RecipeError
            If it is not a signal, or names an unknown step.
        """
        step, dot, stem = str(text).partition(".")
        if not isinstance(text, str) or not (dot and step and stem):
            raise RecipeError(f"{owner}: a signal must be STEP.STEM or STEP.{REST}, but is {short_repr(text)}")
        if step not in self.steps:
            raise RecipeError(f"{owner}: there is no step {short_repr(step)}{near(step, self.steps)}")
        return Signal(step, stem)

    def needed(self, outputs: Collection[str]) -> list[str]:
        """Return the steps that these outputs need, each after the step of its input."""
        found: list[str] = []

        def visit(step: str) -> None:
            if step not in found:
                if (source := self.input_of(step)) is not None:
                    visit(source.step)
                found.append(step)

        for name in outputs:
            visit(self.signal(self.outputs[name], f"output {name}").step)
        return found

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any], *, name: str = "recipe") -> Recipe:
        """Return the recipe in plain values, as in a YAML file.

        In a step, fields of `separation` are at the top level; `models` is a name, or a list of names or mappings with
        `checkpoint` and `configuration`.

        Raises
        ------
        RecipeError
            If a key is unknown, or as in `Recipe` and `Step`.
        """
        _check_keys(content, ("summary", "sources", "steps", "outputs"), ("steps", "outputs"), "the recipe")
        known = [each.name for each in fields(Step) if each.name != "separation"]
        steps: dict[str, Step] = {}
        for step, given in _mapping(content["steps"], "steps").items():
            stated = _mapping(given, f"step {step}")
            _check_keys(stated, (*known, *SEPARATION), ("models",), f"step {step}")
            separation = {key: value for key, value in stated.items() if key in SEPARATION}
            rest = {key: value for key, value in stated.items() if key not in SEPARATION}
            try:
                steps[step] = Step(**rest, separation=separation)
            except RecipeError as error:
                raise RecipeError(f"step {step}: {error}") from error
        return cls(
            steps=steps,
            outputs=_mapping(content["outputs"], "outputs"),
            name=name,
            summary=str(content.get("summary") or ""),
            sources=_texts("sources", content.get("sources") or []),
        )


def near(wrong: object, known: Collection[str]) -> str:
    """Return the end of a message: the most similar known name, or all of them."""
    found = difflib.get_close_matches(str(wrong), known, n=1)
    return f"; is {found[0]} meant?" if found else f"; known are {', '.join(known)}"


def _models(given: Any) -> tuple[Model, ...]:
    """Return models in normal form."""
    if isinstance(given, (str, Path, Mapping, Model)):
        return (_model(cast("Any", given)),)
    if not isinstance(given, (list, tuple)) or not given:
        raise RecipeError(f"`models` must be a checkpoint or a list of them: received {short_repr(cast('Any', given))}")
    return tuple(map(_model, cast("Sequence[Any]", given)))


def _model(given: Any) -> Model:
    if isinstance(given, Mapping):
        stated = cast("Mapping[str, Any]", given)
        _check_keys(stated, Model._fields, ("checkpoint",), "a model")
        given = Model(**stated)
    pair: tuple[Any, Any] = given if isinstance(given, Model) else (given, None)
    checkpoint, configuration = (str(each) if isinstance(each, Path) else each for each in pair)
    if not (isinstance(checkpoint, str) and checkpoint and isinstance(configuration, (str, type(None)))):
        raise RecipeError(f"a model must be a file or a name of the catalogue: received {short_repr(given)}")
    return Model(checkpoint, configuration)


def _texts(what: str, given: Any) -> tuple[str, ...]:
    texts: Any = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not all(
        isinstance(text, str) and text for text in cast("list[Any]", texts)
    ):
        raise RecipeError(f"`{what}` must be a list of texts: received {short_repr(given)}")
    return tuple(cast("list[str]", texts))


def _mapping(given: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in cast("Iterable[Any]", given)):
        raise RecipeError(f"{what} must be a mapping of names, but is {short_repr(cast('Any', given))}")
    return cast("Mapping[str, Any]", given)


def _check_keys(given: Mapping[str, Any], known: Sequence[str], required: Sequence[str], what: str) -> None:
    for key in given:
        if key not in known:
            raise RecipeError(f"{what} has the unknown key {short_repr(key)}{near(key, known)}")
    for key in required:
        if key not in given:
            raise RecipeError(f"{what} has no {key}, which it needs")
