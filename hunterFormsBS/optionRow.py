"""One row of the table of the model's options, and the checks of a value that need only its row.

Rows annotate the types of the arguments, as `Annotated[type, Option(...)]`; `hunterFormsBS.options` collects them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import index
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    Required,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from torch import Tensor

from hunterFormsBS.printable import short_repr

__all__ = [
    "REQUIRED",
    "ByLayout",
    "Needs",
    "Option",
    "Row",
    "any_above_one",
    "check_value",
    "none_of",
    "rows_of",
    "taken_by",
]

REQUIRED: Final = object()
"""The default of a required argument."""

LARGEST = 2**20
"""The largest integer of any argument. Beyond it memory would run out, or sizes overflow."""


class Needs(NamedTuple):
    """The condition under which an argument has an effect."""

    words: str
    names: tuple[str, ...]
    """The other arguments in the condition."""
    are_met: Callable[[Sequence[Any]], bool]
    """The test of their values, for example `any`, `none_of` or `any_above_one`."""

    def are_met_by(self, arguments: Mapping[str, Any]) -> bool:
        """Tell whether the other arguments let this one have an effect."""
        return self.are_met([arguments[name] for name in self.names])


def none_of(values: Sequence[Any]) -> bool:
    """Tell whether all values are 0, False or None."""
    return not any(values)


def any_above_one(values: Sequence[Any]) -> bool:
    """Tell whether some value is a number above 1."""
    return any(value is not None and value > 1 for value in values)


class ByLayout(NamedTuple):
    """What None stands for if bands overlap, and if they lie side by side."""

    overlapping: bool
    side_by_side: bool


@dataclass(frozen=True, kw_only=True)
class Option:
    """What the constructor, the loader and the documentation know of one argument.

    Parameters
    ----------
    default : object, default REQUIRED
        As in the signature of `BandSplitRotator`.
    least, most : float
        Bounds of a number, or of each number of a sequence. Both belong to the range.
    below : float, default None
        A bound that does not belong to the range.
    unset : object, default None
        What None stands for, or a `ByLayout`. None: the layer that uses the value decides.
    needs : Needs, default None
        If not met, only the default is accepted: any other value would have no effect.
    excludes : tuple of str, default ()
        Arguments that must be off if this one is on.
    off : tuple, default ()
        Values besides the default that mean off.
    is_audible : bool, default False
        A listener hears it, and the shapes of a state dict do not determine it: the loader warns if nothing states it.
    is_of_class : bool, default False
        The upstream class determines it, and configurations never state it: the loader does not warn.
    is_layout : bool, default False
        `hunterFormsBS.blocks.layout` checks it, together with the other arguments of the band layout.
    """

    default: object = REQUIRED
    least: float = 0
    most: float = LARGEST
    below: float | None = None
    unset: object = None
    needs: Needs | None = None
    excludes: tuple[str, ...] = ()
    off: tuple[object, ...] = ()
    is_audible: bool = False
    is_of_class: bool = False
    is_layout: bool = False

    def is_off(self, value: object) -> bool:
        """Tell whether the value means off."""
        given: Any = tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return any(
            given is one or (isinstance(one, (int, float, str, tuple)) and bool(given == one))
            for one in (self.default, *self.off)
        )


class Row(NamedTuple):
    """The types of an argument, with unions split, and its option."""

    kinds: tuple[Any, ...]
    option: Option


def rows_of(table: type) -> dict[str, Row]:
    """Return the rows of a `TypedDict` whose values are annotated with an `Option`."""
    rows: dict[str, Row] = {}
    for name, hint in get_type_hints(table, include_extras=True).items():
        annotated = get_args(hint)[0] if get_origin(hint) is Required else hint
        if get_origin(annotated) is not Annotated:
            raise TypeError(f"{table.__name__}.{name} has no row: write Annotated[<its type>, Option(...)]")
        kind, option = get_args(annotated)
        rows[name] = Row(get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,), option)
    return rows


def taken_by(table: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a `TypedDict` of options, or a record of `theTypes`, has."""
    return {name: arguments[name] for name in table.__annotations__ if name in arguments}


def check_value(name: str, value: object, row: Row) -> None:
    """Refuse a value that has the wrong type or is out of range.

    Raises
    ------
    TypeError, ValueError
        With the argument, its value and what to pass instead.
    """
    kinds, option = row
    if isinstance(value, Tensor) and Tensor not in kinds:
        raise TypeError(f"{name} is a tensor of the layout {value.layout}: pass a plain value.")
    if option.is_layout or (value is None and NoneType in kinds):
        return
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    if bool in kinds and isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type))):
        return
    if choices:
        listed = [*((True, False) if bool in kinds else ()), *choices]
        raise ValueError(f"{name}={short_repr(value)} is none of {', '.join(map(repr, listed))}: pass one of them.")
    if bool in kinds:
        raise TypeError(f"{name}={short_repr(value)} is not a boolean: pass True or False, without quotes.")
    if int in kinds:
        _check_integer(name, value, option)
    elif float in kinds:
        _check_number(name, value, option)
    elif Sequence[int] in kinds:
        _check_integers(name, value, option)
    elif not callable(value):
        raise TypeError(f"{name}={short_repr(value)} is not a function: pass one, for example torch.hann_window.")


def _check_integer(name: str, value: object, option: Option) -> None:
    """Refuse anything but an integer within the bounds."""
    try:
        number = index(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(f"{name}={short_repr(value)} is not an integer: pass one of at least {option.least}.") from None
    if isinstance(value, bool) or number < option.least:
        raise ValueError(f"{name}={short_repr(value)} is out of range: pass an integer of at least {option.least}.")
    if number > option.most:
        raise ValueError(f"{name}={short_repr(value)} is out of range: pass an integer of at most {option.most}.")


def _check_integers(name: str, values: object, option: Option) -> None:
    written = short_repr(values)
    if isinstance(values, (str, bytes, Tensor)) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name}={written} is not a sequence of integers: pass a tuple of at least one.")
    for one in cast("Sequence[object]", values):
        _check_integer(f"{name}: value", one, option)


def _check_number(name: str, value: object, option: Option) -> None:
    number: Any = value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={short_repr(value)} is not a number: pass one, for example 0.1.")
    upper = option.most if option.below is None else option.below
    if not option.least <= number <= upper or number == option.below:
        words = f"to {upper:g}" if option.below is None else f"to less than {upper:g}"
        raise ValueError(
            f"{name}={short_repr(value)} is out of range: pass a number from {option.least:g} {words}, or leave it out."
        )
