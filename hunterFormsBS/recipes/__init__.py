"""Recipes: several models in one run, each of which separates the mixture or an output of an earlier one.

The names are imported when they are asked for: recipes are read, listed and drawn without PyTorch.
"""

import typing as _typing

from hunterFormsBS.lazyNames import lazy as _lazy

if _typing.TYPE_CHECKING:
    from hunterFormsBS.recipes.finding import read_recipe as read_recipe
    from hunterFormsBS.recipes.finding import shipped as shipped
    from hunterFormsBS.recipes.recipe import Model as Model
    from hunterFormsBS.recipes.recipe import Recipe as Recipe
    from hunterFormsBS.recipes.recipe import RecipeError as RecipeError
    from hunterFormsBS.recipes.recipe import Step as Step
    from hunterFormsBS.recipes.recipePlan import RecipePlan as RecipePlan

_HOMES = {
    "finding": ("read_recipe", "shipped"),
    "recipe": ("Model", "Recipe", "RecipeError", "Step"),
    "recipePlan": ("RecipePlan",),
}
"""Where the imports above come from, for running programs. A test compares the two."""

# Out of the sight of type checkers, for whom a module with `__getattr__` has every name.
if not _typing.TYPE_CHECKING:
    __getattr__, __dir__, __all__ = _lazy(__name__, _HOMES)
