"""Audio that FFmpeg decodes, through PyAV: everything that libsndfile does not read, and surround mixed down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.printable import printable

FORMATS = (
    "aac,ac3,aiff,alac,amr,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,iff,ircam,matroska,mlp,mov,mp2,mp3,mpc,mpc8,"
    "mpeg,mpegts,nut,ogg,opus,rm,shn,sox,tak,truehd,tta,voc,w64,wav,webm,wv,xwma"
)
"""Containers that hold what they are made of: no playlist that would lead to other files or into the network."""

RELIABLE = ("mov", "wav", "w64", "aiff", "caf", "flac", "wv", "tta", "ape", "asf")
"""Containers whose headers count the samples of the audio, and do not estimate them."""


class Decoded(NamedTuple):
    """What a container says about one of its audio streams."""

    sample_rate: int
    channels: int
    layout: str
    duration: float | None
    format: str


class NotDecodable(ValueError):
    """FFmpeg finds no audio in a file."""


def probe(path: Path, number: int = 1) -> Decoded:
    """Read what a container says about its audio stream of this number, counted from 1.

    Raises
    ------
    ImportError
        If PyAV is not installed.
    NotDecodable
        If this is not audio.
    ValueError
        If there are fewer audio streams.
    """
    with ExitStack() as stack:
        container, stream = _open(path, number, stack)
        context = stream.codec_context
        duration: float | None = None
        if any(name in RELIABLE for name in str(container.format.name).split(",")):
            if stream.duration is not None and stream.time_base is not None:
                duration = float(stream.duration * stream.time_base)
            elif container.duration is not None and len(container.streams) == 1:
                duration = container.duration / 1e6
        layout = str(context.layout.name)
        return Decoded(int(context.sample_rate or 0), int(context.channels or 0), layout, duration, container.format.name)


def decode(path: Path, number: int = 1, *, layout: str | None = None, block: int = 65536) -> Iterator[Tensor]:
    """Decode an audio stream, and go on behind what is damaged.

    Parameters
    ----------
    path : Path
    number : int
        Of the audio stream, counted from 1.
    layout : str | None = None
        `'stereo'` and `'mono'` mix down by FFmpeg's standard matrix. `None`: the channels as they are.
    block : int
        Samples in a block, about.

    Yields
    ------
    audio : Tensor
        `(s, t)`, float32.
    """
    with ExitStack() as stack:
        container, stream = _open(path, number, stack)
        av = _av()
        context = stream.codec_context
        resampler = av.AudioResampler(format="fltp", layout=layout or context.layout.name, rate=context.sample_rate)
        ready: list[Tensor] = []
        waiting = 0
        for frame in (*_frames(av, container, stream), None):
            for converted in resampler.resample(frame):
                ready.append(torch.from_numpy(converted.to_ndarray()))  # (s t)
                waiting += converted.samples
            if waiting >= block or (frame is None and waiting):
                yield torch.cat(ready, dim=-1)
                ready, waiting = [], 0


def _frames(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """Yield decoded frames; a packet that is damaged gives none, and damage at the end ends the file."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.InvalidDataError, av.error.EOFError):
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except (av.error.InvalidDataError, av.error.EOFError):
            continue


def _open(path: Path, number: int, stack: ExitStack) -> tuple[Any, Any]:
    """Open a container and one of its audio streams, both until the stack ends."""
    av = _av()
    file = stack.enter_context(path.open("rb"))
    try:
        container = stack.enter_context(
            av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="replace")
        )
    except (av.error.FFmpegError, UnicodeError) as error:
        raise NotDecodable(f"{printable(path)} is not audio that libsndfile or FFmpeg reads") from error
    streams = container.streams.audio
    if not streams:
        raise NotDecodable(f"{printable(path)} holds no audio")
    if number > len(streams):
        raise ValueError(f"{printable(path)} has {len(streams)} audio stream(s), but --audio-stream is {number}")
    stream = streams[number - 1]
    stream.thread_type = "AUTO"
    return container, stream


def _av() -> Any:
    try:
        return import_module("av")
    except ImportError as error:
        raise ImportError('to read this, install PyAV: pip install "hunterFormsBS[formats]"') from error
