"""List recipes, several models in one run, or show one as a graph."""

from __future__ import annotations

import argparse
import sys

from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.printable import say

EXAMPLES = """\
  hunterforms recipe list
      prints the recipes that come with the package, what they are for, and the files that they write

  hunterforms recipe show dry-lead
      draws its steps, and says what they cost and where they come from; my-recipe.yaml shows a file of one's own

  hunterforms album/ --recipe dry-lead --output separated
      separates every song of the folder with it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.usage = "%(prog)s list | show NAME|FILE [options]"
    add = parser.add_argument
    add("action", choices=("list", "show"), help="list: the recipes of the package; show: one of them or a file")
    add("recipe", nargs="?", metavar="NAME|FILE", help="for show: a name that list prints, or a YAML or JSON file")
    add("--mermaid", action="store_true", help="print the graph in Mermaid's format")
    add("--json", action="store_true", help="print one line of JSON for each recipe")


def run(options: argparse.Namespace, console: Console) -> int:
    """Print recipes."""
    from hunterFormsBS.recipes.drawing import facts_of, mermaid, tree
    from hunterFormsBS.recipes.finding import read_recipe, shipped

    if (options.action == "show") != (options.recipe is not None):
        raise UsageError("show takes one recipe, and list none: hunterforms recipe show NAME|FILE")
    if options.action == "show":
        recipe = read_recipe(options.recipe)
        if options.json:
            console.record(facts_of(recipe))
            return 0
        for line in mermaid(recipe) if options.mermaid else tree(recipe):
            say(line, sys.stdout)
        return 0
    width = max(map(len, shipped()))
    for name, recipe in shipped().items():
        console.record(facts_of(recipe))
        console.show(f"{name:{width}}  {recipe.summary}: {', '.join(recipe.outputs)}")
    return 0
