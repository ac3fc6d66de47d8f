"""The sections of a training configuration, named as in Music-Source-Separation-Training, and their settings.

    settings = settings_from(read_configuration("train.yaml"))

A configuration of Music-Source-Separation-Training has its meaning there: see `is_of_msst`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Final, Union, cast, get_args, get_origin

from hunterFormsBS.training.bounds import stated_fields
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.unread import explain

STATED: Final = stated_fields(Settings)

FIELDS: Final[Mapping[tuple[str, str], str]] = {
    (stated.section, name): field
    for field, (_, stated) in STATED.items()
    if field != "losses"
    for name in stated.names or (field,)
}
"""The field of `Settings` for each section and name."""

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    section: tuple(name for other, name in FIELDS if other == section)
    for section in dict.fromkeys(section for section, _ in FIELDS)
}
"""The names of the settings of each section."""


def is_of_msst(configuration: Mapping[str, Any]) -> bool:
    """Tell whether a configuration is taken for one of Music-Source-Separation-Training.

    It is if it states `upstream: msst` or `msst_experimental`, or has a section `model` and no `upstream`.
    """
    upstream = configuration.get("upstream", "msst" if configuration.get("model") else "")
    return str(upstream).startswith("msst")


def settings_from(configuration: Mapping[str, Any]) -> Settings:
    """Return the settings of a configuration, and warn of those that are not read.

    Raises
    ------
    ValueError
        If a setting is missing or invalid.
    """
    values: dict[str, Any] = {}
    unused: dict[str, Any] = {}
    for section, content in configuration.items():
        if section in ("model", "upstream"):
            continue
        if section in ("optimizer", "losses", "loss_multistft"):
            field = "optimizer_arguments" if section == "optimizer" else section
            values[field] = _section(section, content)
        elif not isinstance(content, Mapping):
            if section in SECTIONS:
                raise ValueError(f"{section}={content!r:.80} must be a section of settings")
            unused[section] = content
        else:
            _read(section, cast("Mapping[str, Any]", content), values, unused)
    needed = ("instruments", "chunk_size", "num_steps", "lr")
    if missing := [name for name in needed if values.get(name) is None]:
        raise ValueError(f"the configuration lacks {', '.join(missing)}: see examples/train.yaml")
    if is_of_msst(configuration):
        values = _as_msst(values, configuration.get("training") or {}, unused)
    for name, instead in explain(unused).items():
        warnings.warn(f"{name:.80} has no effect here: {instead}", stacklevel=2)
    settings = Settings(**{name: _converted(STATED[name][0], each) if name in STATED else each
                           for name, each in values.items()})  # fmt: skip
    _warn_of_mixup(settings)
    return settings


def _section(name: str, content: object) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{name}={content!r:.80} must be a section of settings")
    return dict(cast("Mapping[str, Any]", content))


def _read(section: str, content: Mapping[str, Any], values: dict[str, Any], unused: dict[str, Any]) -> None:
    """Read the settings of a section."""
    for name, value in content.items():
        if section == "augmentations" and isinstance(value, Mapping):
            values.setdefault("effects", {})[name] = value
        elif (section, name) in FIELDS:
            values[FIELDS[section, name]] = value
        else:
            unused[f"{section}.{name}"] = value


def _as_msst(values: dict[str, Any], training: Mapping[str, Any], unused: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of Music-Source-Separation-Training.

    The dataset type is 1, weights are not averaged, validation comes after each epoch, and `num_warmup_steps` is read
    only for `linear_scheduler`.
    """
    steps, accumulated = values["num_steps"], values.get("gradient_accumulation_steps", 1)
    if "num_warmup_steps" in training and values.get("scheduler") != "linear_scheduler":
        unused["training.num_warmup_steps"] = values.pop("warmup_steps")
        if "warmup_steps" in training:
            values["warmup_steps"] = training["warmup_steps"]
    if all(type(each) is int and each > 0 for each in (steps, accumulated)):  # others are refused by name
        values.setdefault("validation_every", -(-steps // accumulated))
    return {"dataset_type": 1, "ema_momentum": 0.0, **values, "as_msst": True}


def _warn_of_mixup(settings: Settings) -> None:
    if settings.enable and settings.mixup and not settings.probability_of_remixing:
        warnings.warn(
            f"augmentations.mixup has no effect here: with dataset_type={settings.dataset_type} and "
            f"remix={settings.probability_of_remixing} stems stay together",
            stacklevel=3,
        )


def _converted(kind: Any, value: Any) -> Any:
    """Convert a list to a tuple, and text such as `1e-5`, which YAML does not read as a number, to a number."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return value if value is None else _converted(parts[0], value)
    if origin is tuple and isinstance(value, list):
        return tuple(_converted(parts[0], each) for each in cast("Sequence[Any]", value))
    if origin is Mapping and parts[1] is float and isinstance(value, Mapping):
        return {key: _converted(float, each) for key, each in cast("Mapping[str, object]", value).items()}
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return value
    return value
