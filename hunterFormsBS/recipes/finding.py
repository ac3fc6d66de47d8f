"""Recipes by name or file: those of the package, and YAML or JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from os import PathLike
from pathlib import Path
from types import MappingProxyType

from hunterFormsBS.checkpoint.configurationFile import read_configuration
from hunterFormsBS.printable import printable, short_repr
from hunterFormsBS.recipes.recipe import Model, Recipe, RecipeError, Step, near
from hunterFormsBS.songs.names import safe_name

__all__ = ["read_recipe", "shipped"]


@cache
def shipped() -> Mapping[str, Recipe]:
    """Return the recipes of the package by name."""
    with as_file(files("hunterFormsBS.recipes")) as folder:
        found = {path.stem: _read(path, path.stem) for path in sorted(folder.glob("*.yaml"))}
    return MappingProxyType(found)


def read_recipe(name: str | PathLike[str]) -> Recipe:
    """Return a recipe of the package, or one from a file.

    Parameters
    ----------
    name : str | PathLike[str]
        A name, or a YAML or JSON file. Relative paths of checkpoints and configurations in a file start at its folder.

    Raises
    ------
    RecipeError
        If there is none of this name, or it is invalid.
    CheckpointError, OSError
        If the file cannot be read, or is not plain YAML or JSON.
    """
    path = Path(name)
    if not path.exists() and str(name) in shipped():
        return shipped()[str(name)]
    if not path.exists() and path.suffix == "":
        known = near(name, shipped())
        raise RecipeError(f"{short_repr(str(name))} is neither a file nor a recipe of the package{known}")
    recipe = _read(path, safe_name(path.stem))
    return replace(recipe, steps={name: _beside(step, path.parent) for name, step in recipe.steps.items()})


def _read(path: Path, name: str) -> Recipe:
    content = read_configuration(path)
    try:
        return Recipe.from_mapping(content, name=name)
    except RecipeError as error:
        raise RecipeError(f"{printable(path)}: {error}") from error


def _beside(step: Step, folder: Path) -> Step:
    """Return a step with relative paths of existing files resolved against the recipe's folder."""

    def found(name: str | None) -> str | None:
        return str(folder / name) if name and (folder / name).is_file() else name

    return replace(
        step, models=[Model(found(each.checkpoint) or "", found(each.configuration)) for each in step.models]
    )
