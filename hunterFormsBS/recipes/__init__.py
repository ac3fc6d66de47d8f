"""Recipes: several models in one run, each of which separates the mixture or something that an earlier one gave."""

from hunterFormsBS.recipes.finding import read_recipe, shipped
from hunterFormsBS.recipes.recipe import Model, Recipe, RecipeError, Step
from hunterFormsBS.recipes.recipePlan import RecipePlan

__all__ = ["Model", "Recipe", "RecipeError", "RecipePlan", "Step", "read_recipe", "shipped"]
