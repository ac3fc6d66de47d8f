"""One row of the table of variants: how a variant of the architecture shows in a state dict.

The rows of heads stand beside the heads; `checkpoint/variants.py` puts all together.
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
"""How keys of any head, and of the first, begin."""

# None of the classes for these variants silences 0 Hz.
NEVER_SILENT: Final[Mapping[str, object]] = MappingProxyType({"zero_dc": False})


class Count(NamedTuple):
    """How many numbers the group of a regular expression takes, among the keys that begin with what it matches."""

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
"""Where keys and shapes say what an argument is, or its value, where the variant alone says it."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Parameters
    ----------
    name : str
        What messages call it.
    pattern : str
        A regular expression that matches a key of its state dicts, and none of other variants'.
    example : str
        Such a key.
    options : str
        The arguments of `BandSplitRotator` that make it, for readers. Empty: it is not supported.
    switches : tuple[str, ...]
        Those that have their defaults in every other model.
    readings : Mapping[str, Reading]
        Where keys and shapes say its arguments.
    keys : str
        A regular expression for the keys that it has besides those of the plain model, in this package's form.
    layer : str
        What its layers are called in the arguments that count those of an axis, where they replace transformers.
    overlapping : bool, default None
        The upstream class that the next two describe is for bands that overlap, or for those that do not; None: both.
    defaults : Mapping[str, object]
        Defaults of that class where they differ from those of the plain model.
    mask_estimator_depth_excess : int, default None
        What its `mask_estimator_depth` counts beyond the hidden layers; None: as the plain model.
    elsewhere : str
        The argument that switches it on in configurations of other programs.
    advice : str
        One sentence for the message that refuses it.
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
