"""How a song is separated: one record, made of keywords once and passed whole."""

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
        `torch.float32`: run without autocast. `torch.int8`: on a CPU, the linear maps of the transformers in integers
        of 8 bits, all else in float32; a warning says where nothing of a model can be computed so. `None`: autocast
        as it is around the call.
    tta : bool, default False
        Test-time augmentation: the mean of the estimates for the song, for its polarity inverted and, in stereo, for
        its channels exchanged, each undone afterwards. It takes three times as long, in mono twice.
    shifts : int, default 1
        The mean of that many passes, each with the end of the song put before its beginning, further by its length
        over `shifts` each time, and put back afterwards: as `bigshifts` of Music-Source-Separation-Training. It takes
        as many times as long; of all passes but one, chunks over the seam are computed twice. The song is held whole.
    blend : {"smooth", "msst", "pymss", "audio-separator"}, default "smooth"
        Where chunks lie, what they weigh, and how a song is continued at its ends. "msst" is what
        Music-Source-Separation-Training does, for the same stems as it writes; there they depend on `batch_size`.
        "pymss" and "audio-separator" are the same for these programs.
    start : int, default 0
        First sample of the part of the song to separate. The model sees what lies around the part, so that the samples
        of its stems are those of the whole song, up to rounding.
    end : int | None, default None
        The sample after its last; `None`, or one beyond the end of the song: all that follows.
    duration : int | None, default None
        Its samples, in place of `end`.

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
        """Refuse what cannot be used; devices are tried where the model goes there."""
        check_separation(**{name: value for name, value in vars(self).items() if name not in ("device", "dtype")})
        if self.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.int8, None):
            raise ValueError(
                "`dtype` must be torch.float32, torch.bfloat16, torch.float16, torch.int8 or None: received "
                f"{printable(repr(self.dtype))}."
            )

    @property
    def stop(self) -> float:
        """The sample after the last of the part; infinity where that is the end of the song."""
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
