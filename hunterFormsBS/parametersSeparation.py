"""How a song is separated: one record, made of keywords once and passed whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import torch

from hunterFormsBS.printable import printable, short_repr
from hunterFormsBS.signature import explained

__all__ = ["LARGEST", "KeywordsSeparation", "ParametersSeparation"]

LARGEST = 10**12
"""Samples or chunks: more than any memory holds, and so little that no product of sizes overflows unnoticed."""


@dataclass(frozen=True, kw_only=True)
class ParametersSeparation:
    """How a song is separated. Whatever takes these as keywords has the default values of this record.

    Parameters
    ----------
    chunk_size : int, default 352800
        Samples that the model sees at a time. What it was trained on is best; at least the window of its transform.
    num_overlap : float, default 2
        How many chunks cover a sample away from the ends of the song, on average: 1.25 lets each chunk share a fifth
        with each neighbour. With 1 the chunks abut. The time is proportional to it.
    batch_size : int, default 1
        Chunks in one call of the model. It is halved, with a warning, when the device is out of memory.
    device : torch.device | str | None, default None
        Where the model runs. A module is moved there and stays there. `None`: where the module's parameters are; the
        mixture's device when it has none.
    dtype : torch.dtype | None, default None
        `torch.bfloat16` or `torch.float16`: run under autocast to it, the weights staying as they are.
        `torch.float32`: run without autocast. `None`: autocast as it is around the call.
    tta : bool, default False
        Test-time augmentation: the mean of the estimates for the song, for its polarity inverted and, in stereo, for
        its channels exchanged, each undone afterwards. It takes three times as long, in mono twice.

    Raises
    ------
    TypeError, ValueError
        If a value cannot be used, whatever the model and the song.
    """

    chunk_size: int = 352800
    num_overlap: float = 2
    batch_size: int = 1
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    tta: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be used."""
        _check(self)


class KeywordsSeparation(TypedDict, total=False):
    """The fields of `ParametersSeparation` as keyword arguments."""

    chunk_size: int
    num_overlap: float
    batch_size: int
    device: torch.device | str | None
    dtype: torch.dtype | None
    tta: bool


ParametersSeparation.__init__ = explained(ParametersSeparation.__init__)  # type: ignore[method-assign]


def _check(parameters: ParametersSeparation) -> None:
    """Raise unless all values can be used; devices are tried where the model goes there."""
    for name in ("chunk_size", "batch_size"):
        _check_positive_integer(name, getattr(parameters, name))
    overlap: object = parameters.num_overlap
    if isinstance(overlap, bool) or not isinstance(overlap, (int, float)):
        raise TypeError(f"`num_overlap` must be a number: received {short_repr(overlap)}.")
    if not 1 <= overlap < math.inf:
        raise ValueError(f"`num_overlap` must be at least 1: received {short_repr(overlap)}.")
    if overlap > parameters.chunk_size:
        raise ValueError(
            f"`num_overlap` must not exceed `chunk_size`: received {short_repr(overlap)} and {parameters.chunk_size}. "
            "Use fewer overlaps or longer chunks."
        )
    if parameters.dtype not in (torch.float32, torch.bfloat16, torch.float16, None):
        raise ValueError(
            "`dtype` must be torch.float32, torch.bfloat16, torch.float16 or None: received "
            f"{printable(repr(parameters.dtype))}."
        )
    if not isinstance(parameters.tta, bool):
        raise TypeError(f"`tta` must be True or False: received {short_repr(parameters.tta)}.")


def _check_positive_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer: received {short_repr(value)}.")
    if not 1 <= value <= LARGEST:
        raise ValueError(f"`{name}` must be from 1 to {LARGEST}: received {short_repr(value)}.")
