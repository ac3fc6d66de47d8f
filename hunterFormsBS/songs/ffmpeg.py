"""Audio that libsndfile does not read, such as m4a and video, decoded by FFmpeg, which PyAV brings along.

FFmpeg also mixes surround down to stereo.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.installation import how_to_install
from hunterFormsBS.printable import printable

__all__ = ["Decoded", "NotDecodableError", "decode_with_ffmpeg", "probe_with_ffmpeg", "texts_by_ffmpeg"]

FORMATS = (
    "aac,ac3,aiff,alac,amr,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,iff,ircam,matroska,mlp,mov,mp2,mp3,mpc,mpc8,"
    "mpeg,mpegts,nut,ogg,opus,rm,shn,sox,tak,truehd,tta,voc,w64,wav,webm,wv,xwma"
)
"""Containers that hold what they are made of: no playlist that would lead to other files or into the network."""

RELIABLE = ("mov", "wav", "w64", "aiff", "caf", "flac", "wv", "tta", "ape", "asf", "matroska")
"""Containers whose headers state how long the audio is, and do not estimate it."""


class Decoded(NamedTuple):
    """What a container says about one of its audio streams; of the duration in seconds, only what is reliable."""

    sample_rate: int
    channels: int
    duration: float | None


class NotDecodableError(ValueError):
    """FFmpeg finds no audio in a file."""


def probe_with_ffmpeg(pathFilename: Path, number: int = 1, *, name: object = None) -> Decoded:
    """Read what a container says about its audio stream of this number, counted from 1.

    Messages call it by the name, or else by its path.

    Raises
    ------
    ImportError
        If PyAV is not installed.
    NotDecodableError
        If this is not audio.
    ValueError
        If there are fewer audio streams.
    """
    with ExitStack() as stack:
        container, stream = _open(pathFilename, number, stack, name)
        duration: float | None = None
        if any(kind in RELIABLE for kind in str(container.format.name).split(",")):
            if stream.duration is not None and stream.time_base is not None:
                duration = float(stream.duration * stream.time_base)
            elif container.duration is not None and len(container.streams) == 1:
                duration = container.duration / 1e6
        context = stream.codec_context
        return Decoded(int(context.sample_rate or 0), int(context.channels or 0), duration)


def texts_by_ffmpeg(pathFilename: Path) -> dict[str, str]:
    """Return what a file says about its song, by names in lower case; nothing if FFmpeg finds no audio in it.

    Raises
    ------
    ImportError
        If PyAV is not installed.
    """
    with ExitStack() as stack, suppress(NotDecodableError, OSError):
        container, stream = _open(pathFilename, 1, stack)
        return {str(name).lower(): str(text) for name, text in {**stream.metadata, **container.metadata}.items()}
    return {}


def decode_with_ffmpeg(
    pathFilename: Path, frames: int, number: int = 1, *, layout: str | None = None
) -> Iterator[Tensor]:
    """Decode an audio stream in blocks of about so many frames, and go on behind what is damaged.

    Parameters
    ----------
    pathFilename : Path
    frames : int
    number : int
        Of the audio stream, counted from 1.
    layout : str | None
        `'stereo'` mixes down by FFmpeg's standard matrix. `None`: the channels as they are.

    Yields
    ------
    audio : Tensor
        `(s, t)`, float32, full scale at 1.
    """
    with ExitStack() as stack:
        container, stream = _open(pathFilename, number, stack)
        convert = _av().AudioResampler(format="fltp", layout=layout, rate=stream.codec_context.sample_rate)
        ready: list[Tensor] = []
        waiting = 0
        # The last samples come when there is nothing more to convert.
        for frame in chain(_frames(container, stream), iter([None])):
            for converted in convert.resample(frame):
                ready.append(torch.as_tensor(converted.to_ndarray().copy()))  # (s t)
                waiting += ready[-1].shape[-1]
            if waiting >= frames:
                yield torch.cat(ready, dim=-1)
                ready, waiting = [], 0
        if waiting:
            yield torch.cat(ready, dim=-1)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Yield decoded frames; a packet that is damaged gives none, and damage of the container ends the file."""
    error = _av().error
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except error.FFmpegError:
            # Threads of the decoder hold frames that came before.
            with suppress(error.FFmpegError):
                yield from stream.codec_context.decode(None)
            return
        if packet is None:
            return
        with suppress(error.InvalidDataError, error.EOFError):
            yield from packet.decode()


def _open(pathFilename: Path, number: int, stack: ExitStack, name: object = None) -> tuple[Any, Any]:
    """Open a container and one of its audio streams, both until the stack ends."""
    av = _av()
    called = printable(pathFilename if name is None else name)
    file = stack.enter_context(pathFilename.open("rb"))  # Python opens names that are not UTF-8 as well.
    try:
        container = stack.enter_context(av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="replace"))
    except (av.error.FFmpegError, ValueError) as error:
        raise NotDecodableError(f"{called} is not audio that libsndfile or FFmpeg reads") from error
    streams = container.streams.audio
    if not streams:
        raise NotDecodableError(f"{called} is not audio: FFmpeg finds no audio stream in it")
    if number > len(streams):
        raise ValueError(f"{called} has {len(streams)} audio stream(s): --audio-stream {number} is none of them")
    stream = streams[number - 1]
    stream.thread_type = "AUTO"
    return container, stream


def _av() -> Any:
    try:
        module = import_module("av")
        import_module("av.error")
    except ImportError as error:
        raise ImportError(f"PyAV is not here: {how_to_install('av')} reads all that FFmpeg does") from error
    return module
