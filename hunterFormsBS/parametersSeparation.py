"""Settings of a separation: one record, made from keywords once and passed whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import torch

from hunterFormsBS.choices import BATCH_SIZE, BLENDS, CHUNK_SIZE, LARGEST, NUM_OVERLAP, SHIFTS, Blend
from hunterFormsBS.printable import printable
from hunterFormsBS.separationValues import check_separation
from hunterFormsBS.signature import explained

__all__ = ["BLENDS", "LARGEST", "Blend", "KeywordsSeparation", "ParametersSeparation"]


@dataclass(frozen=True, kw_only=True)
class ParametersSeparation:
    """Settings of a separation. Functions that take them as keywords have the defaults of this record.

    Parameters
    ----------
    chunk_size : int, default 352800
        Samples that the model sees at a time, at least the window of its transform. The length in training is best.
    num_overlap : float, default 2
        How many chunks cover a sample on average, away from the ends of the song: with 1.25 each chunk shares a fifth
        with each neighbour, with 1 chunks abut. Time is proportional to it.
    batch_size : int, default 1
        Chunks in one call of the model. It is halved, with a warning, if the device is out of memory.
    device : torch.device | str | None, default None
        Where the model runs. A module is moved there and stays there. `None`: the device of the module's parameters, or
        of the mixture if it has none.
    dtype : torch.dtype | None, default None
        `torch.bfloat16` or `torch.float16`: run under autocast, without converting weights. `torch.float32`: run
        without autocast. `torch.int8`: on a CPU, compute the linear maps of the transformers in 8-bit integers,
        everything else in float32; a warning says if that is impossible. `None`: keep the caller's autocast.
    tta : bool, default False
        Test-time augmentation: average over the song, the song with inverted polarity and, in stereo, with swapped
        channels. It takes three times as long, in mono twice.
    shifts : int, default 1
        Average over this many passes, in which the song is rotated in time by multiples of its length over `shifts`, as
        `bigshifts` of Music-Source-Separation-Training. Time is proportional to it. The whole song is held in memory.
    blend : {"smooth", "msst", "pymss", "audio-separator"}, default "smooth"
        Offsets and weights of chunks, and how a song is extended at its ends. "msst", "pymss" and "audio-separator"
        give the same stems as these programs (MSST's depend on `batch_size`).
    start : int, default 0
        First sample of the part of the song to separate. The model sees the surroundings of the part, so its samples
        equal those of the whole song's stems, up to rounding.
    end : int | None, default None
        The sample after its last. `None`, or one beyond the end of the song: up to the end.
    duration : int | None, default None
        Its length in samples, instead of `end`.

    Raises
    ------
    TypeError, ValueError
        If a value cannot be used, whatever the model and the song.
    """

    chunk_size: int = CHUNK_SIZE
    num_overlap: float = NUM_OVERLAP
    batch_size: int = BATCH_SIZE
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    tta: bool = False
    shifts: int = SHIFTS
    blend: Blend = "smooth"
    start: int = 0
    end: int | None = None
    duration: int | None = None

    def __post_init__(self) -> None:
        """Refuse invalid values. Devices are tried later, when the model is moved."""
        check_separation(**{name: value for name, value in vars(self).items() if name not in ("device", "dtype")})
        if self.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.int8, None):
            raise ValueError(
                "`dtype` must be torch.float32, torch.bfloat16, torch.float16, torch.int8 or None: received "
                f"{printable(repr(self.dtype))}."
            )

    @property
    def stop(self) -> float:
        """The sample after the last of the part; infinity for the end of the song."""
        return (self.end or math.inf) if self.duration is None else self.start + self.duration


class KeywordsSeparation(TypedDict, total=False):
    """The fields of `ParametersSeparation` as keyword arguments."""

    chunk_size: int
    num_overlap: float
    batch_size: int
    device: torch.device | str | None
    dtype: torch.dtype | None
    tta: bool
    shifts: int
    blend: Blend
    start: int
    end: int | None
    duration: int | None


ParametersSeparation.__init__ = explained(ParametersSeparation.__init__)  # type: ignore[method-assign]
