"""Initial weights of a run: new, or from a checkpoint, with old and new heads.

model, origin = start_from("vocals.ckpt", stems=("vocals", "choir"), heads={"vocals": 0, "choir": None})
freeze(model, patterns=["*"], but=["mask_estimators.1.*"])
print(describe(model, origin))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, from_configuration
from hunterFormsBS.checkpoint.heads import model_with_heads

_OF_PEFT: Final = re.compile(r"\.(?:base_layer|modules_to_save\.[^.]+)(?=\.)")
"""Parts of parameter names that peft adds."""


@dataclass(frozen=True)
class Origin:
    """The origin of a model's parameters.

    Parameters
    ----------
    checkpoint : str or None
        The file name.
    made : frozenset of str
        Names of parameters with new, random values; all others are from the checkpoint.
    heads : mapping, default {}
        For each stem, the checkpoint's head that was copied, None for a new head. Empty if the heads are those of the
        checkpoint.
    """

    checkpoint: str | None
    made: frozenset[str]
    heads: Mapping[str, int | None] = field(default_factory=dict[str, "int | None"])


def start_from(
    checkpoint: Path | str | None,
    configuration: Mapping[str, Any] | None = None,
    *,
    stems: Sequence[str],
    heads: Mapping[str, int | None] | None = None,
    upstream: Any = None,
) -> tuple[BandSplitRotator, Origin]:
    """Build a model with a head for each stem.

    Parameters
    ----------
    checkpoint : path or None
        Anything that `from_checkpoint` reads. None: all weights are new.
    configuration : mapping, default None
        As for `from_checkpoint`, but `num_stems` is that of the new model.
    stems : sequence of str
        Names of the new model's stems, in order.
    heads : mapping, default None
        For each stem, the number of the checkpoint's head to start from, or None for a new one. Several stems may start
        from the same head. If not given, the checkpoint must have as many heads as there are stems.
    upstream : optional
        As for `from_checkpoint`.

    Raises
    ------
    ValueError
        If stems and heads do not fit.
    """
    section: dict[str, Any] = dict((configuration or {}).get("model") or {})
    stated = section.get("num_stems", len(stems) if checkpoint is not None else 1)
    if stated != len(stems):
        raise ValueError(
            f"the model has num_stems={stated}, and the configuration names {len(stems)} stems to train, "
            f"{', '.join(stems)}: change model.num_stems or training.instruments"
        )
    if checkpoint is None:
        if configuration is None or heads:
            raise ValueError("without a checkpoint there are no heads to take, and the configuration must be complete")
        model = from_configuration(configuration, upstream=upstream or "msst")
        return model, Origin(None, frozenset(name for name, _ in model.named_parameters()))
    # Without a section `model` the configuration within the file is used.
    section.pop("num_stems", None)
    old = from_checkpoint(checkpoint, {"model": section} if section else None, upstream=upstream if section else None)
    numbers = _numbers_of_heads(stems, heads, old.num_stems)
    if numbers == list(range(old.num_stems)):
        return old, Origin(Path(checkpoint).name, frozenset())
    model, taken = model_with_heads(old, numbers)
    made = (name for name, _ in model.named_parameters() if name not in taken)
    return model, Origin(Path(checkpoint).name, frozenset(made), dict(zip(stems, numbers, strict=True)))


def freeze(model: nn.Module, patterns: Iterable[str], but: Iterable[str] = ()) -> None:
    """Freeze parameters whose names match one of `patterns`, except those that match one of `but`.

    Parameters
    ----------
    model : nn.Module
    patterns, but : iterable of str
        For example `layers.*` or `*.to_qkv.*`; see `fnmatch`.

    Raises
    ------
    ValueError
        If a pattern matches nothing, or no parameter is left to train.
    """
    patterns, but = tuple(patterns), tuple(but)
    parameters = dict(model.named_parameters())
    for pattern in (*patterns, *but):
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ValueError(f"no parameter has a name like {pattern!r}: one is called {next(iter(parameters))!r}")
    for name, parameter in parameters.items():
        if _matches(name, patterns) and not _matches(name, but):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"fine_tuning.freeze={list(patterns)} leaves nothing to train: name some in fine_tuning.train")


def describe(model: nn.Module, origin: Origin) -> str:
    """Return a summary of parameters taken, made new, trained and frozen, and of the origin of heads.

    peft's copies of the old weights of fully trained modules do not count.
    """
    rows: list[tuple[str, Callable[[str, Tensor], bool]]] = [
        ("trained", lambda _, parameter: parameter.requires_grad),
        ("frozen", lambda _, parameter: not parameter.requires_grad),
    ]
    if origin.checkpoint is not None:
        rows = [
            (f"taken from {origin.checkpoint}", lambda name, _: name not in origin.made and "lora_" not in name),
            ("made new", lambda name, _: name in origin.made or "lora_" in name),
            *rows,
        ]
    parameters = {
        _OF_PEFT.sub("", name): parameter
        for name, parameter in model.named_parameters()
        if ".original_module." not in name
    }
    lines: list[str] = []
    for label, belongs in rows:
        chosen = {name: parameter for name, parameter in parameters.items() if belongs(name, parameter)}
        count = sum(parameter.numel() for parameter in chosen.values())
        lines.append(f"{count:>15,} parameters {label}" + (f": {summary(chosen)}" if chosen else ""))
    if origin.heads:
        heads = (f"{stem} {'new' if head is None else f'from head {head}'}" for stem, head in origin.heads.items())
        lines.append(f"{len(origin.heads):>15,} heads: {', '.join(heads)}")
    return "\n".join(lines)


def summary(names: Iterable[str]) -> str:
    """Return the modules of parameters, with numbers of layers and heads: `layers.0-5, final_norm`."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        top, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        listed = numbers.setdefault(top, [])
        if number.isdecimal() and int(number) not in listed:
            listed.append(int(number))
    return ", ".join(top + (f".{_ranges(listed)}" if listed else "") for top, listed in numbers.items())


def _ranges(numbers: Sequence[int]) -> str:
    parts: list[str] = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda item: item[1] - item[0]):
        values = [value for _, value in run]
        parts.append(str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}")
    return "+".join(parts)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _numbers_of_heads(stems: Sequence[str], heads: Mapping[str, int | None] | None, num_heads: int) -> list[int | None]:
    if heads is None:
        if num_heads != len(stems):
            example = ", ".join(f"{stem}: {number}" for number, stem in zip([0, None], stems, strict=False))
            raise ValueError(
                f"the checkpoint has {num_heads} heads for {len(stems)} stems, {', '.join(stems)}: say in "
                f"fine_tuning.heads which head each stem starts from, such as {{{example.replace('None', 'null')}}}"
            )
        return list(range(num_heads))
    if set(heads) != set(stems):
        raise ValueError(
            f"fine_tuning.heads has {', '.join(heads)}, and the stems are {', '.join(stems)}: "
            "give each stem the number of a head, or null for a new one"
        )
    for stem, number in heads.items():
        if number is not None and (type(number) is not int or not 0 <= number < num_heads):
            raise ValueError(f"fine_tuning.heads has {stem}: {number!r}, and the heads are 0 to {num_heads - 1}")
    return [heads[stem] for stem in stems]
