"""Configurations of upstream projects: reading files, and translating arguments into this package's."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from hunterFormsBS.checkpoint.arguments import DEFAULTS, SEQUENCES
from hunterFormsBS.checkpoint.configurationFile import PathFilename, read_configuration
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.families import NAMES_OF_MEL_ONLY, UPSTREAM_NAMES, Family
from hunterFormsBS.checkpoint.parsing import check_extent
from hunterFormsBS.checkpoint.programs import (
    ignored_remarks,
    in_own_words,
    in_words_of_msst,
    section_of,
    states_nothing,
)
from hunterFormsBS.choices import Upstream
from hunterFormsBS.printable import printable, short_repr

Configuration: TypeAlias = PathFilename | Mapping[str, Any]
"""A configuration file, or its contents."""

_WINDOW_FUNCTIONS: Final[Mapping[str, Callable[..., Tensor]]] = {
    function.__name__: function
    for function in (
        torch.bartlett_window,
        torch.blackman_window,
        torch.hamming_window,
        torch.hann_window,
        torch.kaiser_window,
        torch.ones,  # no window, as in the first releases of BS-RoFormer 0.3
    )
}


class StatedArguments(NamedTuple):
    """The model arguments of a configuration.

    Parameters
    ----------
    arguments : dict[str, object]
        With this package's names and convention.
    spelled : dict[str, str]
        The spelling of each in the configuration, for messages.
    remarks : tuple[str, ...]
        Remarks on parts of the configuration that are not read.
    """

    arguments: dict[str, object]
    spelled: dict[str, str]
    remarks: tuple[str, ...] = ()


def upstream_of(whole: Mapping[str, Any], upstream: Upstream | None) -> Upstream | None:
    """Return the upstream of a configuration: its `model_type` decides if the caller says MSST or nothing."""
    sections: list[Mapping[str, Any]] = [whole]
    if isinstance(whole.get("training"), Mapping):
        sections.append(whole["training"])
    types = [str(section.get("model_type", "")) for section in sections]
    experimental = upstream in (None, "msst") and any(each.endswith("_experimental") for each in types)
    return "msst_experimental" if experimental else upstream


def load_configuration(configuration: Configuration | None) -> Mapping[str, Any]:
    """Return a configuration with the sections and names of Music-Source-Separation-Training; empty for `None`."""
    if configuration is None:
        return {}
    if isinstance(configuration, Mapping):
        _check_plain(configuration, "the configuration")
    return in_words_of_msst(configuration if isinstance(configuration, Mapping) else read_configuration(configuration))


def model_section(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of the model: the section `model`, or the whole configuration if it has no sections."""
    return section_of(configuration, "model") if "model" in configuration else configuration


def is_for_mel(section: Mapping[str, Any]) -> bool:
    """Tell whether arguments are for upstream's Mel-Band RoFormer."""
    stated = {name for name, value in section.items() if value is not None}
    mel = sorted(stated & NAMES_OF_MEL_ONLY)
    if mel and "freqs_per_bands" in stated:
        raise CheckpointError(
            f"the configuration states freqs_per_bands, as for a BS-RoFormer, and {', '.join(mel)}, as for a "
            "Mel-Band RoFormer: keep those of one of the two"
        )
    return bool(mel)


def stated_arguments(configuration: Mapping[str, Any], family: Family) -> StatedArguments:
    """Return the model's arguments in a configuration, and remarks on parts that are not read."""
    section = model_section(configuration)
    remarks = (*ignored_remarks(configuration), *_flash_attn_remarks(section))
    return translate_arguments(section, family)._replace(remarks=remarks)


def translate_arguments(section: Mapping[str, Any], family: Family) -> StatedArguments:
    """Translate the arguments of an upstream model into those of `BandSplitRotator`.

    Parameters
    ----------
    section : Mapping[str, Any]
        Arguments in the convention of upstream or of this package.
    family : Family
        The family whose convention it is.

    Returns
    -------
    stated : StatedArguments
        Without arguments whose value is `None`.

    Raises
    ------
    CheckpointError
        If an argument is unknown, is stated under both its names, or names an unknown window function.
    """
    arguments: dict[str, object] = {}
    spelled: dict[str, str] = {}
    section = in_own_words({key: value for key, value in section.items() if not states_nothing(str(key), value)})
    _refuse_unknown_names(section)
    for key, value in section.items():
        name = UPSTREAM_NAMES.get(key, key)
        if value is None or name == "linear_flash_attn":
            continue
        if name in arguments:
            raise CheckpointError(
                f"the configuration states {spelled[name]} and {key}={_shorten(value)}: keep one of them"
            )
        arguments[name] = _translate_value(name, value, family)
        spelled[name] = f"{key}={_shorten(value)}"
        if name == "mask_estimator_depth" and family.mask_estimator_depth_excess:
            spelled[name] += f" (which upstream counts so that it is {arguments[name]} here)"
    return StatedArguments(arguments, spelled)


def resolve_values(arguments: Mapping[str, object]) -> dict[str, object]:
    """Convert values from files to values for the constructor, and check argument names.

    Raises
    ------
    CheckpointError
        If an argument is unknown, or names an unknown window function.
    """
    _check_plain(arguments, "what is passed as arguments of the model")
    _refuse_unknown_names(arguments, known=[*DEFAULTS])
    return {name: _resolve_value(name, value) for name, value in arguments.items()}


def to_plain_values(value: object, where: str = "the configuration") -> object:
    """Convert a value to plain containers, numbers, strings and tensors; functions become their names.

    Raises
    ------
    TypeError
        If that is impossible; `where` names the value.
    """
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return value
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return {str(key): to_plain_values(entry, f"{where}[{key!r}]") for key, entry in entries.items()}
    if isinstance(value, (list, tuple)):
        items = [to_plain_values(item, where) for item in cast("Sequence[object]", value)]
        return tuple(items) if isinstance(value, tuple) else items
    if callable(value) and getattr(value, "__name__", None) in _WINDOW_FUNCTIONS:
        return getattr(value, "__name__", None)
    item = getattr(value, "item", None)  # a NumPy number
    if callable(item):
        return to_plain_values(item(), where)
    raise TypeError(
        f"{where} is {short_repr(value)}, which a checkpoint cannot hold: state a plain value, or a window of torch"
    )


def _flash_attn_remarks(section: Mapping[str, Any]) -> list[str]:
    """Return a remark if upstream's `linear_flash_attn` and `flash_attn` differ."""
    linear, flash = section.get("linear_flash_attn"), section.get("flash_attn")
    flash = True if flash is None else flash
    if linear is None or linear == flash:
        return []
    return [
        f"linear_flash_attn={short_repr(linear)} differs from flash_attn={short_repr(flash)}, but here one flag serves "
        f"both kinds of attention: flash_attn={short_repr(flash)} is used, which computes the same"
    ]


def _check_plain(mapping: Mapping[str, object], what: str) -> None:
    try:
        check_extent(mapping)
    except ValueError as error:
        raise CheckpointError(f"{what} cannot be read: {error}") from error


def _refuse_unknown_names(names: Iterable[object], known: Sequence[str] = ()) -> None:
    names_known = known or [*DEFAULTS, *UPSTREAM_NAMES, "linear_flash_attn"]
    for name in names:
        if name in names_known:
            continue
        nearest = difflib.get_close_matches(printable(name, 60), names_known, n=1, cutoff=0.6)
        hint = f"The nearest known name is {nearest[0]!r}. " if nearest else ""
        raise CheckpointError(
            f"{short_repr(name)} is not an argument of the model. {hint}"
            "Is this the configuration of a RoFormer, and its arguments in a section called model?"
        )


def _translate_value(name: str, value: object, family: Family) -> object:
    if name == "mask_estimator_depth" and family.mask_estimator_depth_excess:
        if isinstance(value, bool) or not isinstance(value, int) or value < family.mask_estimator_depth_excess:
            raise CheckpointError(
                f"mask_estimator_depth={short_repr(value)} cannot be: for {family.name} it must be an integer "
                f"of at least {family.mask_estimator_depth_excess}"
            )
        return value - family.mask_estimator_depth_excess
    return _resolve_value(name, value)


def _resolve_value(name: str, value: object) -> object:
    if name in SEQUENCES and isinstance(value, list):
        return tuple(cast("list[object]", value))
    if name == "mask_filter_bank" and value is not None:
        return _mask(value)
    if name.endswith("_window_fn") and isinstance(value, str):
        function = _WINDOW_FUNCTIONS.get(value.removeprefix("torch."))
        if function is None:
            names = ", ".join(_WINDOW_FUNCTIONS)
            raise CheckpointError(
                f"{name}={short_repr(value)} names no window function that is known; known are {names}"
            )
        return function
    return value


def _mask(value: object) -> Tensor:
    """Make a mask from rows of numbers or booleans; return a tensor unchanged."""
    shown = _shorten(value)
    if isinstance(value, Tensor) and value.ndim == 2 and value.layout == torch.strided and not value.is_nested:
        return value
    listed = cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else ()
    if listed and all(isinstance(row, (list, tuple)) for row in listed):
        widths = {len(cast("Sequence[object]", row)) for row in listed}
        numbers = [number for row in listed for number in cast("Sequence[object]", row)]
        if len(widths) == 1 and all(isinstance(number, (bool, int, float)) for number in numbers):
            flags = [[bool(cast("float", number) > 0) for number in cast("Sequence[object]", row)] for row in listed]
            return torch.tensor(flags, dtype=torch.bool, device="cpu")
    raise CheckpointError(
        f"mask_filter_bank={shown} is not a list of rows of one length, one row of numbers for each band"
    )


def _shorten(value: object) -> str:
    return short_repr(value, 80)
