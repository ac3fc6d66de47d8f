"""One row of the table of variants: how to recognise a variant of the architecture in a state dict.

Rows for heads are in the modules of the heads; `checkpoint/variants.py` collects all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

ATTENTION_KEYS: Final = (
    r"norm\.gamma|to_qkv\.(?:(?:0\.)?weight|bias)|to_gates\.(?:weight|bias)|to_out\.(?:[01]\.weight|0\.bias)"
    r"|temperature|rotary_embed\.freqs|pope_embed\.(?:bias|inv_freqs)|to_value_residual_mix\.(?:weight|bias)"
)
FEED_FORWARD_KEYS: Final = r"net\.0\.gamma|net\.[14]\.(?:weight|bias)"
"""Keys within an attention layer and within a feedforward layer."""

HEADS: Final = r"mask_estimators\.\d+\."
HEAD: Final = r"mask_estimators\.0\."
"""Prefixes of keys of any head, and of the first."""

# None of the classes for these variants silences 0 Hz.
NEVER_SILENT: Final[Mapping[str, object]] = MappingProxyType({"zero_dc": False})


class Count(NamedTuple):
    """The number of distinct values of the expression's group, among the keys whose beginning it matches."""

    pattern: str


class Present(NamedTuple):
    """Whether there is a key that a regular expression matches as a whole."""

    pattern: str


class Size(NamedTuple):
    """One size of the first tensor whose key `pattern` matches as a whole; over the first size of `per`, `times`."""

    pattern: str
    axis: int = 0
    per: str = ""
    times: int = 1


class Sizes(NamedTuple):
    """The first size of each of several tensors, found as in `Size`."""

    patterns: tuple[str, ...]


Reading: TypeAlias = Count | Present | Size | Sizes | int
"""Where an argument's value is found in keys and shapes, or the value itself if the variant determines it."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Parameters
    ----------
    name : str
        Its name in messages.
    pattern : str
        A regular expression that matches a key of its state dicts, and none of other variants'.
    example : str
        Such a key.
    options : str
        The arguments of `BandSplitRotator` that make it, for readers. Empty: it is not supported.
    switches : tuple[str, ...]
        Those of the arguments that have their defaults in every other model.
    readings : Mapping[str, Reading]
        How to read its arguments from keys and shapes.
    keys : str
        A regular expression for its keys besides those of the plain model, in this package's form.
    layer : str
        If its layers replace transformers: their name in the arguments that count the layers of an axis.
    overlapping : bool, default None
        Whether the upstream class of the next two fields is for overlapping bands, or not; None: both.
    defaults : Mapping[str, object]
        Defaults of that class where they differ from those of the plain model.
    mask_estimator_depth_excess : int, default None
        What its `mask_estimator_depth` counts beyond the hidden layers; None: as the plain model.
    elsewhere : str
        The argument that turns it on in configurations of other programs.
    advice : str
        A sentence for the message that refuses it.
    published : str
        Where it comes from.
    """

    name: str
    pattern: str
    example: str
    options: str = ""
    switches: tuple[str, ...] = ()
    readings: Mapping[str, Reading] = field(default_factory=dict[str, Reading])
    keys: str = ""
    layer: str = ""
    overlapping: bool | None = None
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    mask_estimator_depth_excess: int | None = None
    elsewhere: str = ""
    advice: str = "Use the program that it was made for."
    published: str = ""
