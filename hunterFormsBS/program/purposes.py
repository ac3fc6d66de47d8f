"""The question for the purpose of a separation, if the command line names no models."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from hunterFormsBS.checkpoint.facts import entries, presets
from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.printable import say, short_repr
from hunterFormsBS.program.parsing import NAME
from hunterFormsBS.recipes import shipped
from hunterFormsBS.songs.sharing import rank_in_job

__all__ = ["Purpose", "ask_purpose", "purposes"]

REMEDY: Final = (
    f"name what to separate with, such as {NAME} song.wav --recipe vocals: `{NAME} recipe list` and `{NAME} presets` "
    f"list purposes, `{NAME} models` single models for --checkpoint"
)


class Purpose(NamedTuple):
    """A recipe or a preset of the package.

    Parameters
    ----------
    option : str
        `"recipe"` or `"preset"`.
    name : str
    summary : str
        The stems, in words.
    size : int
        Bytes to download before its first use.
    """

    option: str
    name: str
    summary: str
    size: int

    def __str__(self) -> str:
        """Return its option and name, its stems, and the size."""
        return f"--{self.option} {self.name}: {self.summary}; {self.size / 1e6:,.0f} MB"


def purposes() -> list[Purpose]:
    """Return all recipes and then all presets of the package, smallest downloads first."""
    return sorted(_purposes(), key=lambda purpose: (purpose.option != "recipe", purpose.size))


def _purposes() -> Iterator[Purpose]:
    for name, recipe in shipped().items():
        steps = [recipe.steps[step] for step in recipe.needed(recipe.outputs)]
        yield Purpose(
            "recipe", name, recipe.summary, _size([each.checkpoint for step in steps for each in step.models])
        )
    for name, preset in presets().items():
        summary = f"{', '.join(preset.stems)}, of {len(preset.checkpoints)} models together"
        yield Purpose("preset", name, summary, _size(preset.checkpoints))


def _size(checkpoints: Sequence[str]) -> int:
    return sum(entries()[name].size for name in set(checkpoints))


def ask_purpose(console: Console) -> Mapping[str, str]:
    """Ask at the terminal for a purpose, and print the command line that it stands for.

    Parameters
    ----------
    console : Console

    Returns
    -------
    option : Mapping[str, str]
        `recipe` or `preset`, and its name.

    Raises
    ------
    UsageError
        If nobody can answer: standard input or standard error is not a terminal, several processes divide the songs, or
        the input ends.
    """
    streams = (sys.stdin, sys.stderr)
    if not all(stream is not None and stream.isatty() for stream in streams) or rank_in_job().size > 1:
        raise UsageError(REMEDY)
    offered = purposes()
    say("What do you want to hear? Models are fetched once, and kept.", sys.stderr)
    for number, purpose in enumerate(offered, start=1):
        say(f"{number:3}  {purpose}", sys.stderr)
    chosen = _answer(offered)
    console.remark(f"{chosen} (without the question: {NAME} SONG --{chosen.option} {chosen.name})")
    return {chosen.option: chosen.name}


def _answer(offered: Sequence[Purpose]) -> Purpose:
    """Read lines until one is the number or the name of a purpose; an empty line selects the first."""
    names = {purpose.name: purpose for purpose in offered}
    numbers = {str(number): purpose for number, purpose in enumerate(offered, start=1)}
    while True:
        say("Which number or name? (1)", sys.stderr)
        line = sys.stdin.readline()
        if not line:
            raise UsageError(REMEDY)
        answer = line.strip() or "1"
        chosen = numbers.get(answer) or names.get(answer)
        if chosen is not None:
            return chosen
        say(f"{short_repr(answer)} is neither a number from 1 to {len(offered)} nor a name above", sys.stderr)
