"""Recipes: several models in one run, each of which separates the mixture or an output of an earlier one."""

from hunterFormsBS.recipes.finding import read_recipe, shipped
from hunterFormsBS.recipes.recipe import Model, Recipe, RecipeError, Step
from hunterFormsBS.recipes.recipePlan import RecipePlan

__all__ = ["Model", "Recipe", "RecipeError", "RecipePlan", "Step", "read_recipe", "shipped"]
