"""Argument types of several commands. Each returns a value, or an error with what it must be and what it is."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from hunterFormsBS.choices import LARGEST, UPSTREAMS
from hunterFormsBS.printable import short_repr

__all__ = ["add_upstream", "checked", "integer", "names", "number", "weights"]

T = TypeVar("T")


def integer(lowest: int = 1, highest: int = LARGEST) -> Callable[[str], int]:
    """Return the type of integers from `lowest` to `highest`."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]+", text) and len(text) < 100 and lowest <= int(text) <= highest:
            return int(text)
        raise argparse.ArgumentTypeError(f"must be an integer from {lowest} to {highest}, but is {short_repr(text)}")

    return parse


def number(lowest: float = -math.inf, highest: float = math.inf, *, above: float = -math.inf) -> Callable[[str], float]:
    """Return the type of finite numbers from `lowest` to `highest`, or of those greater than `above`."""
    bounds = [f"of at least {lowest:g}"] * (lowest > -math.inf) + [f"above {above:g}"] * (above > -math.inf)
    words = f"from {lowest:g} to {highest:g}" if lowest > -math.inf and highest < math.inf else " and ".join(bounds)

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and lowest <= value <= highest and value > above:
            return value
        raise argparse.ArgumentTypeError(f"must be a number {words}, but is {short_repr(text)}")

    return parse


def names(text: str) -> list[str]:
    """Parse names separated by commas."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"must be names separated by commas, but is {short_repr(text)}")
    return found


def weights(text: str) -> list[float]:
    """Parse numbers separated by commas, none negative and not all zero."""
    try:
        found = [float(weight) for weight in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 <= weight < math.inf for weight in found) or not sum(found):
        raise argparse.ArgumentTypeError(f"must be numbers separated by commas, but is {short_repr(text)}")
    return found


def checked(function: Callable[[str], T]) -> Callable[[str], T]:
    """Return the type that a function parses from text. The message of its ValueError is shown."""

    def parse(text: str) -> T:
        try:
            return function(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def add_upstream(group: Any) -> None:
    """Add the option for the convention of a configuration."""
    group.add_argument(
        "--upstream",
        choices=UPSTREAMS,
        help="project whose convention the configuration follows (default: recognised from the checkpoint)",
    )
