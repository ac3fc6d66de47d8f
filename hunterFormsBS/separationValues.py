"""What the fields of `ParametersSeparation` may hold, device and dtype apart: nothing here imports PyTorch."""

from __future__ import annotations

import math

from hunterFormsBS.choices import BATCH_SIZE, BLENDS, CHUNK_SIZE, LARGEST, NUM_OVERLAP, SHIFTS
from hunterFormsBS.printable import short_repr

__all__ = ["check_separation"]


def check_separation(
    *,
    chunk_size: object = CHUNK_SIZE,
    num_overlap: object = NUM_OVERLAP,
    batch_size: object = BATCH_SIZE,
    tta: object = False,
    shifts: object = SHIFTS,
    blend: object = "smooth",
    start: object = 0,
    end: object = None,
    duration: object = None,
) -> None:
    """Refuse values that cannot be used, whatever the model and the song.

    Raises
    ------
    TypeError, ValueError
        With the value, and what it must be.
    """
    chunk = _integer("chunk_size", chunk_size)
    _integer("batch_size", batch_size)
    _integer("shifts", shifts)
    if blend not in BLENDS:
        raise ValueError(f"`blend` must be one of {', '.join(BLENDS)}: received {short_repr(blend)}.")
    _check_part(_integer("start", start, lowest=0), end, duration)
    _check_overlap(num_overlap, chunk)
    if not isinstance(tta, bool):
        raise TypeError(f"`tta` must be True or False: received {short_repr(tta)}.")


def _check_part(start: int, end: object, duration: object) -> None:
    if end is not None:
        stop = _integer("end", end)
        if duration is not None:
            raise ValueError(f"`end` and `duration` exclude each other: received {end} and {duration}. Leave one out.")
        if stop <= start:
            raise ValueError(
                f"`end` must be greater than `start`: received {end} and {start}. A duration is `duration`."
            )
    if duration is not None:
        _integer("duration", duration)


def _check_overlap(num_overlap: object, chunk_size: int) -> None:
    if isinstance(num_overlap, bool) or not isinstance(num_overlap, (int, float)):
        raise TypeError(f"`num_overlap` must be a number: received {short_repr(num_overlap)}.")
    if not 1 <= num_overlap < math.inf:
        raise ValueError(f"`num_overlap` must be at least 1: received {short_repr(num_overlap)}.")
    if num_overlap > chunk_size:
        raise ValueError(
            f"`num_overlap` must not exceed `chunk_size`: received {short_repr(num_overlap)} and {chunk_size}. "
            "Use fewer overlaps or longer chunks."
        )


def _integer(name: str, value: object, *, lowest: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer: received {short_repr(value)}.")
    if not lowest <= value <= LARGEST:
        raise ValueError(f"`{name}` must be from {lowest} to {LARGEST}: received {short_repr(value)}.")
    return value
