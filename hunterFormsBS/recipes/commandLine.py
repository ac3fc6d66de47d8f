"""The recipe of a command line, and the options that cannot be combined with it."""

from __future__ import annotations

from typing import cast

from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.parametersSeparation import KeywordsSeparation, ParametersSeparation
from hunterFormsBS.recipes.finding import read_recipe
from hunterFormsBS.recipes.recipePlan import RecipePlan
from hunterFormsBS.songs.options import Options

__all__ = ["plan_of_options"]

INSTEAD = {
    "preset": "the recipe names its models",
    "checkpoint": "the recipe names them",
    "configuration": "the recipe names it as models: {checkpoint: FILE, configuration: FILE}",
    "upstream": "each model is recognised by itself",
    "lora": "merge the adapters into a checkpoint with `hunterforms convert --lora`",
    "weights": "the recipe states them",
    "residual": "the recipe names the rest of a step as an output, STEP.rest",
    "also_rest": "the recipe names the rest of a step as an output, STEP.rest",
}
"""Options that cannot be combined with a recipe, and what to do instead."""


def plan_of_options(options: Options, console: Console) -> RecipePlan:
    """Return the plan of a command line with `--recipe`.

    Raises
    ------
    UsageError
        If another option cannot be combined with it.
    RecipeError, CheckpointError, ImportError, OSError
        See `read_recipe` and `RecipePlan`.
    """
    for name, remedy in INSTEAD.items():
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} does not go with --recipe: {remedy}")
    if options.ensemble != "avg_wave":
        raise UsageError("--ensemble does not go with --recipe: the recipe states it")
    # The recipe applies where the command line says nothing.
    usual = ParametersSeparation()
    given = {name: value for name, value in options.separation().items() if value != getattr(usual, name)}
    return RecipePlan(
        read_recipe(options.recipe or ""),
        outputs=options.stems,
        one_model_at_a_time=options.one_model_at_a_time,
        console=console,
        **cast("KeywordsSeparation", given),
    )
