"""Types and bounds of settings, as annotations of the fields.

lr: Annotated[float, Stated("training", above=0, at_most=100)]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Final, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

MOST: Final = 10**12
"""More than any sensible count of samples, batches or updates."""


class Stated(NamedTuple):
    """The section of a setting in a configuration, and its bounds.

    Parameters
    ----------
    section : str
        Of the configuration.
    names : tuple of str
        Names of the setting in that section, if they differ from the field's.
    at_least, above, at_most, below : float, default None
        Bounds of the number, or of each number in the list or the mapping.
    one_of : tuple, default ()
        All valid values, besides None if the type allows it.
    """

    section: str
    names: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: tuple[Any, ...] = ()

    def admits(self, number: float) -> bool:
        """Tell whether a number is within the bounds. NaN is not."""
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    @property
    def described(self) -> str:
        """The bounds in words."""
        words = ("at_least", "above", "at_most", "below")
        bounds = [(word.replace("_", " "), getattr(self, word)) for word in words]
        return " and ".join(f"{word} {bound:,}" for word, bound in bounds if bound is not None)


def stated_fields(record: type) -> dict[str, tuple[Any, Stated]]:
    """Return type and bounds of each field of a dataclass that a configuration can state."""
    hints = get_type_hints(record, include_extras=True)
    rows = {each.name: get_args(hints[each.name]) for each in fields(record)}
    return {name: (row[0], row[-1]) for name, row in rows.items() if row and isinstance(row[-1], Stated)}


def check(record: object) -> None:
    """Compare every field of a dataclass with its type and bounds.

    Raises
    ------
    ValueError
        With the name of the setting in the configuration, its value, and the valid ones.
    """
    for field, (kind, stated) in stated_fields(type(record)).items():
        value = getattr(record, field)
        label = stated.section if field == stated.section else f"{stated.section}.{(stated.names or (field,))[0]}"
        if not is_of(value, kind):
            raise ValueError(f"{label}={value!r:.80} must be {in_words(kind)}")
        if stated.one_of and value is not None and value not in stated.one_of:
            raise ValueError(f"{label}={value!r:.80} is unknown: choose one of {', '.join(map(str, stated.one_of))}")
        for number in _numbers(value):
            if not stated.admits(number):
                raise ValueError(f"{label}={value!r:.80} must be {stated.described}")


def is_of(value: object, kind: Any) -> bool:
    """Tell whether a value has a type. Booleans are not numbers; integers are accepted as floats."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(is_of(value, part) for part in parts)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, tuple) and all(is_of(each, parts[0]) for each in cast("tuple[object, ...]", value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            return False
        pairs = cast("Mapping[object, object]", value).items()
        return all(is_of(key, str) and (parts[1] is Any or is_of(each, parts[1])) for key, each in pairs)
    return isinstance(value, kind)


def in_words(kind: Any) -> str:
    """Describe a type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(in_words(part) for part in parts)
    if origin is tuple:
        return "a list of names" if parts[0] is str else "a list of numbers"
    if origin is Mapping:
        return "a section of settings" if parts[1] is Any else "a section with a number for each name"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a name", NoneType: "null"}[kind]


def _numbers(value: object) -> Iterator[float]:
    """Yield the numbers in a value."""
    if isinstance(value, Mapping):
        value = tuple(cast("Mapping[object, object]", value).values())
    for each in cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,):
        if isinstance(each, (int, float)) and not isinstance(each, bool):
            yield each
