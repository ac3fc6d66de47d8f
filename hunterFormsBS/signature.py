"""Readable signatures of constructors and functions, and the right name for a wrong argument."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from functools import wraps
from types import MappingProxyType
from typing import Any, Final, ParamSpec, TypeVar, get_type_hints

__all__ = ["explained", "with_fields_of"]

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., object])

_MEL_SCALE = "mel layouts are on Slaney's scale: leave it out, or pass another layout as mask_filter_bank"

FORMER_NAMES: Final = MappingProxyType(
    {
        "activation": "mask estimators have tanh, which was its default: leave it out",
        "add_value_residual": "it is use_value_residual_learning=True here, and learned_value_residual_mix='swapped' "
        "for the weights of a Mel-Band RoFormer of the package BS-RoFormer",
        "linear_flash_attn": "flash_attn serves both kinds of attention: leave it out",
        "melscale_fbanks_mel_scale": _MEL_SCALE,
        "melscale_fbanks_norm": "only which weights are positive counts, and no norm changes that: leave it out",
    }
)
"""Arguments of version 0.3 and of upstream packages that do not exist here, and what to do instead."""


def explained(init: Callable[P, None], further: Callable[..., None] | None = None) -> Callable[P, None]:
    """Wrap a constructor: its signature is readable, and an unknown argument is answered with the right name.

    Parameters
    ----------
    init : Callable
        An `__init__` whose arguments are keywords, except the first.
    further : Callable, default None
        The explained `__init__` that takes the `**keywords` of `init`.

    Returns
    -------
    Callable
        The constructor. Its signature has all arguments in the order of `further`, with annotations as objects, and
        long defaults by name.
    """
    signature = _signature(init, further)
    names = list(signature.parameters)[1:]

    @wraps(init)
    def constructor(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in names:
                raise TypeError(f"{type(args[0]).__name__} has no argument {name!r}: {_remedy(name, names)}.")
        init(*args, **kwargs)

    constructor.__signature__ = signature  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    return constructor


def with_fields_of(record: type) -> Callable[[F], F]:
    """Return a decorator for functions that make a record from their `**keywords`.

    In the signature and help of such a function, the record's fields replace the keywords, with types, defaults and
    descriptions.
    """

    def explain(function: F) -> F:
        own = inspect.signature(function, eval_str=True)
        named = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        signature = own.replace(parameters=[*named, *inspect.signature(record).parameters.values()])
        function.__signature__ = signature  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
        if function.__doc__ and record.__doc__:  # Python drops both with -OO.
            fields = inspect.cleandoc(record.__doc__).partition("----------\n")[2].partition("\n\n")[0]
            documented = inspect.cleandoc(function.__doc__)
            function.__doc__ = re.sub(r"\*\*keywords.*(\n    .*)*", lambda _: fields, documented)
        return function

    return explain


def _remedy(name: str, names: list[str]) -> str:
    if name in FORMER_NAMES:
        return FORMER_NAMES[name]
    lowered = {known.lower(): known for known in names}
    (nearest,) = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.0)
    return f"the nearest is {lowered[nearest]!r}"


class _Parameter(inspect.Parameter):
    """A parameter whose default prints by name if its `repr` would fill the screen."""

    __slots__ = ()

    def __str__(self) -> str:
        default = self.default if self.default is self.empty else _Shown(_name(self.default))
        return str(inspect.Parameter(self.name, self.kind, default=default, annotation=self.annotation))

    def _format(self, **_options: Any) -> str:
        # Called by signatures instead of `str` from Python 3.14 on.
        return str(self)


class _Shown:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _name(default: object) -> str:
    if callable(default):
        module = getattr(default, "__module__", None) or "torch"
        return f"{module}.{getattr(default, '__name__', default)}"
    text = repr(default)
    return text if len(text) <= 60 else "DEFAULT_FREQS_PER_BANDS"


def _signature(init: Callable[..., None], further: Callable[..., None] | None) -> inspect.Signature:
    hints = get_type_hints(init)
    own: dict[str, inspect.Parameter] = {
        name: _Parameter(name, parameter.kind, default=parameter.default, annotation=hints.get(name, parameter.empty))
        for name, parameter in inspect.signature(init).parameters.items()
    }
    if further is not None:
        own = {name: own.get(name, parameter) for name, parameter in inspect.signature(further).parameters.items()}
    return inspect.Signature(list(own.values()), return_annotation=None)
