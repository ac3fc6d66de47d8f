"""Configurations of low-rank adapters: layers, ranks and scales.

Names of layers are matched as peft matches them.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Annotated, Any, Final, Self, TypeVar, cast, get_args, get_type_hints

from torch import nn

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.limits import LONGEST_KEY, LONGEST_MATCHING
from hunterFormsBS.printable import printable, short_repr

__all__ = ["HARMLESS", "LoraConfiguration", "LoralibSection"]

MOST_STEMS: Final = 256
"""The limit of `num_stems`."""

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """The valid values of a field."""

    fits: Callable[[object], bool]
    expected: str
    """Completes the message "it must be …"."""


HARMLESS: Final = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
        *("task_type", "runtime_config", "ensure_weight_tying", "qalora_group_size"),
        # Only for training.
        *("lora_dropout", "corda_config", "eva_config", "loftq_config", "lora_ga_config", "velora_config"),
        # peft imports this module only for megatron_config, which is refused here.
        "megatron_core",
        # For layers that no model of this package has.
        "fan_in_fan_out",
    }
)
"""Fields of peft's configuration that never change merged weights."""


def _is_whole(value: object, least: int = 1) -> bool:
    return type(value) is int and least <= value < 2**31


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -1e30 < cast(float, value) < 1e30  # not for NaN


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_KEY


def _is_list(value: object, of: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(of, cast("list[object]", value)))


def _is_mapping(value: object, of: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(
        _is_name(key) and of(each) for key, each in cast("dict[object, object]", value).items()
    )


def _is_head(value: object) -> bool:
    return value is None or _is_whole(value, 0)


_RANK: Final = Kind(_is_whole, "a whole number from 1")
_NUMBER: Final = Kind(_is_number, "a finite number")
_SWITCH: Final = Kind(lambda value: type(value) is bool, "true or false")
_SWITCHES: Final = Kind(lambda value: _is_list(value, _SWITCH.fits), "a list of true and false")
_NAMES: Final = Kind(lambda value: _is_list(value, _is_name), "a list of names")
_PATTERN: Final = Kind(lambda value: _is_name(value) or _NAMES.fits(value), "a list of names, or a regular expression")
_LAYERS: Final = Kind(
    lambda value: _is_whole(value, 0) or _is_list(value, lambda each: _is_whole(each, 0)),
    "the number of a layer, or a list of them",
)
_RANKS: Final = Kind(lambda value: _is_mapping(value, _is_whole), "whole numbers from 1 by names of layers")
_NUMBERS: Final = Kind(lambda value: _is_mapping(value, _is_number), "finite numbers by names of layers")
_HEADS: Final = Kind(
    lambda value: _is_mapping(value, _is_head) and 0 < len(cast("dict[str, object]", value)) <= MOST_STEMS,
    f"numbers of heads by names of at most {MOST_STEMS} stems",
)
_BIAS: Final = Kind(lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only")
_START: Final = Kind(
    lambda value: isinstance(value, (bool, str)) and value in (True, False, "gaussian", "eva", "orthogonal", "mica"),
    "true, false, gaussian, eva, orthogonal or mica, because all others change the model before its training",
)


def _read(cls: type[T], content: Mapping[str, object], what: str, harmless: Iterable[str]) -> T:
    """Make a dataclass from a file's fields; null is accepted where the default is None.

    Raises
    ------
    CheckpointError
        If a value has the wrong type or is not finite, or a field is unknown.
    """
    hints = get_type_hints(cls, include_extras=True)
    for name, value in content.items():
        if name in hints:
            kind: Kind = get_args(hints[name])[1]
            if not kind.fits(value) and (value is not None or getattr(cls, name) is not None):
                raise CheckpointError(f"{what} states {name}: {short_repr(value)}, and it must be {kind.expected}")
        elif name not in harmless and value not in (None, False, {}, []):
            raise CheckpointError(
                f"{what} states {printable(name, 60)}: {short_repr(value)}, which is not supported: merge the adapters "
                "with the program that trained them"
            )
    return cls(**{name: content[name] for name in hints if name in content})


def _named(model: nn.Module, *, remove_duplicate: bool = True) -> Iterable[tuple[str, nn.Module]]:
    return cast("Iterable[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=remove_duplicate))


@dataclass(frozen=True, kw_only=True)
class LoraConfiguration:
    """The fields of peft's `LoraConfig` that affect merged weights, with its defaults."""

    r: Annotated[int, _RANK] = 8
    lora_alpha: Annotated[float, _NUMBER] = 8
    rank_pattern: Annotated[Mapping[str, int] | None, _RANKS] = None
    alpha_pattern: Annotated[Mapping[str, float] | None, _NUMBERS] = None
    use_rslora: Annotated[bool, _SWITCH] = False
    use_dora: Annotated[bool, _SWITCH] = False
    bias: Annotated[str, _BIAS] = "none"
    lora_bias: Annotated[bool, _SWITCH] = False
    init_lora_weights: Annotated[bool | str, _START] = True
    target_modules: Annotated[list[str] | str | None, _PATTERN] = None
    exclude_modules: Annotated[list[str] | str | None, _PATTERN] = None
    modules_to_save: Annotated[list[str] | None, _NAMES] = None
    layers_to_transform: Annotated[list[int] | int | None, _LAYERS] = None
    layers_pattern: Annotated[list[str] | str | None, _PATTERN] = None
    stem_heads: Annotated[Mapping[str, int | None] | None, _HEADS] = None
    """Not a field of peft: the stems of the adapted model, and for each the checkpoint's head that its head started
    from, None for a new head."""

    @classmethod
    def of(cls, content: Mapping[str, object], what: str) -> Self:
        """Check the contents of an `adapter_config.json`; messages begin with `what`.

        Raises
        ------
        CheckpointError
            If it is not for LoRA, a value is invalid, or a field changes merged weights in an unsupported way.
        """
        kind = content.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(f"{what} states peft_type: {short_repr(kind)}, and only LORA can be merged")
        return _read(cls, content, what, HARMLESS)

    def whole(self, model: nn.Module) -> list[str]:
        """Return the names of the fully trained modules."""
        saved = tuple(self.modules_to_save or ())
        return [name for name, _ in _named(model, remove_duplicate=False) if saved and name.endswith(saved)]

    def scales(self, model: nn.Module) -> dict[str, tuple[int, float]]:
        """Return rank and scale for each layer with adapters.

        Raises
        ------
        CheckpointError
            If a regular expression is invalid, or takes too long.
        """
        patterns = _Patterns()
        targets = self.target_modules
        if isinstance(targets, str) and targets.lower() == "all-linear":
            targets = [name for name, module in _named(model) if isinstance(module, nn.Linear)]
        named, excluded = _as_set(targets), _as_set(self.exclude_modules)
        saved = [(rf"(^|.*\.){each}($|\..*)", each) for each in self.modules_to_save or ()]
        scales: dict[str, tuple[int, float]] = {}
        for name, _ in _named(model):
            if (
                patterns.name_one(named, name)
                and not patterns.name_one(excluded, name)
                and not any(patterns.match(*each, name) for each in saved)
                and (isinstance(named, str) or name in named or self._is_in_layer(name, patterns))
            ):
                rank = patterns.of_first(self.rank_pattern, name, self.r)
                alpha = patterns.of_first(self.alpha_pattern, name, self.lora_alpha)
                scales[name] = rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)
        return scales

    def _is_in_layer(self, name: str, patterns: _Patterns) -> bool:
        """Tell whether a module is in one of `layers_to_transform`, or none is stated."""
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        number = r"\.(?P<number>\d+)\..*"
        if not self.layers_pattern:
            found = patterns.match(rf".*?\.[^.]*{number}", "", name)
        else:
            stated = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
            matches = (patterns.match(rf"(?:^|.*?\.){each}{number}", each, name) for each in stated)
            found = next((match for match in matches if match is not None), None)
        return found is not None and int(found["number"]) in (layers if isinstance(layers, list) else [layers])


@dataclass(frozen=True, kw_only=True)
class LoralibSection:
    """The section `lora` of a configuration of Music-Source-Separation-Training: arguments of loralib's layers."""

    r: Annotated[int | None, _RANK] = None
    lora_alpha: Annotated[float, _NUMBER] = 1
    enable_lora: Annotated[list[bool] | None, _SWITCHES] = None

    @classmethod
    def of(cls, section: object, what: str) -> Self:
        """Check the section; messages begin with `what`.

        Raises
        ------
        CheckpointError
            If there is none, or a value is invalid or not supported.
        """
        if not isinstance(section, Mapping):
            raise CheckpointError(
                f"{what} hold adapters of loralib, whose scale, lora_alpha / r, only the section lora of their "
                "configuration states: pass the configuration that they were trained with"
            )
        stated = cast("Mapping[str, object]", section)
        return _read(cls, stated, f"the section lora of the configuration of {what}", ("lora_dropout", "merge_weights"))


class _Patterns:
    """Module names and regular expressions from a file, matched with module names within a time limit."""

    def __init__(self) -> None:
        self._end = time.monotonic() + LONGEST_MATCHING

    def name_one(self, stated: frozenset[str] | str, name: str) -> bool:
        """Tell whether a regular expression matches a module's name, or one of several names is its end."""
        if isinstance(stated, str):
            return self.match(stated, stated, name) is not None
        parts = name.split(".")
        return any(".".join(parts[start:]) in stated for start in range(len(parts)))

    def of_first(self, values: Mapping[str, T] | None, name: str, usual: T) -> T:
        """Return the value of the first pattern that matches the end of a module's name."""
        matching = (value for key, value in (values or {}).items() if self.match(rf"(.*\.)?({key})$", key, name))
        return next(matching, usual)

    def match(self, expression: str, stated: str, name: str) -> re.Match[str] | None:
        """Match a whole name with an expression that contains text from a file.

        Raises
        ------
        CheckpointError
            If it is not a regular expression, or the time is up.
        ImportError
            If the package regex is needed and not installed.
        """
        left = self._end - time.monotonic()
        if left > 0 and _PLAIN.fullmatch(stated):  # this is valid and cannot take long
            return cast("re.Match[str] | None", _compiled("re", expression).fullmatch(name))
        # Python's own module has no time limit, and some expressions would take years.
        regex = _regex()
        try:
            found = _compiled("regex", expression).fullmatch(name, timeout=max(left, 0.001))
        except TimeoutError as error:
            raise CheckpointError(
                f"regular expressions such as {short_repr(stated, 120)} take over {LONGEST_MATCHING:.0f} seconds to "
                "compare with the names of the layers: write them in a simpler way"
            ) from error
        except (regex.error, RecursionError) as error:
            raise CheckpointError(
                f"{short_repr(stated, 120)} is not a regular expression: {printable(error, 120)}"
            ) from error
        return cast("re.Match[str] | None", found)


_PLAIN: Final = re.compile(r"\^?(?:[\w.-]|\\\.)*\$?")
"""Module names, optionally with anchors and escaped dots."""


def _as_set(stated: list[str] | str | None) -> frozenset[str] | str:
    return stated if isinstance(stated, str) else frozenset(stated or ())


@lru_cache(maxsize=1024)
def _compiled(module: str, expression: str) -> Any:
    return import_module(module).compile(expression)


def _regex() -> Any:
    try:
        return import_module("regex")
    except ImportError as error:
        raise ImportError(f"to read patterns of adapters, install regex: {how_to_install('lora')}") from error
