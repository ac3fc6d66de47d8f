"""Audio that libsndfile does not read, such as m4a and video, decoded by FFmpeg, which PyAV brings along."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["AudioProperties", "decode_with_ffmpeg", "has_ffmpeg", "probe_with_ffmpeg"]


class AudioProperties(NamedTuple):
    """What the header of an audio file says."""

    length: int
    sample_rate: int
    channels: int


def has_ffmpeg() -> bool:
    """Tell whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def probe_with_ffmpeg(pathFilename: Path) -> AudioProperties | None:
    """Return what the first audio stream of a file is; None if there is none, or no PyAV."""
    if not has_ffmpeg():
        return None
    import av
    import av.error

    try:
        with av.open(str(pathFilename)) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None or not stream.rate:
                return None
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / av.time_base
            # A stream of unknown length has one at least.
            return AudioProperties(max(1, round(seconds * stream.rate)), int(stream.rate), int(stream.channels))
    except (av.error.FFmpegError, ValueError):
        return None


def decode_with_ffmpeg(pathFilename: Path, frames: int) -> Iterator[Tensor]:
    """Decode the first audio stream of a file in blocks of about so many frames: `(s, t)`, float32, full scale at 1.

    Raises
    ------
    ValueError
        If it cannot be decoded.
    """
    import av
    import av.error

    waiting: list[Tensor] = []
    decoded = False
    try:
        with av.open(str(pathFilename)) as container:
            stream = container.streams.audio[0]
            convert = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
            pieces: Iterator[Any] = (piece for frame in container.decode(stream) for piece in convert.resample(frame))
            for piece in chain(pieces, iter([None])):
                # The last samples come when there is nothing more to convert.
                for one in [piece] if piece is not None else convert.resample(None):
                    waiting.append(torch.as_tensor(one.to_ndarray().copy()))
                if sum(block.shape[-1] for block in waiting) >= frames:
                    decoded = True
                    yield torch.cat(waiting, dim=-1)
                    waiting.clear()
    except (av.error.FFmpegError, IndexError) as error:
        # A file that was cut off holds what comes before; that it is shorter than its header says is for others to say.
        if not decoded and not waiting:
            raise ValueError(f"{pathFilename} is damaged: copy or download it again ({error})") from error
    if waiting:
        yield torch.cat(waiting, dim=-1)
