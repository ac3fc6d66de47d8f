"""Audio files checked by their headers, then read block by block."""

from __future__ import annotations

import math
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.limits import HIGHEST_RATE, LOWEST_RATE
from hunterFormsBS.printable import printable
from hunterFormsBS.songs.ffmpeg import SHORTEST_LOSS, Decoder, NotDecodableError, open_stream

__all__ = ["AudioFile", "duration", "probe_audio", "read_audio"]

FRAMES_PER_BLOCK = 1 << 18

EXACT = ("aiff", "ape", "au", "flac", "tta", "wv")
"""Containers whose headers state the number of samples, besides WAV, W64 and CAF."""

ROUNDED = ("asf", "matroska", "mov", "mp3")
"""Containers whose headers state a duration, to about a frame of the codec; MP3 only with the header of Xing."""

SHORT_BY = 0.1
"""Seconds that a file with a rounded duration may lack without a warning."""

LONGEST_FRAME = 3000
"""Bytes of a frame of MP3, and some more."""


class AudioFile(NamedTuple):
    """An audio file that can be read; `probe_audio` makes one."""

    pathFilename: Path
    name: str
    """What messages call it."""
    sample_rate: int
    channels: int
    """1 or 2, after mixing down."""
    length: int | None = None
    """Samples of each channel that the file seems to have; None if only reading tells."""
    kind: str = ""
    """FFmpeg's names of the container, with commas between them."""
    stated: int | None = None
    """Samples that the header states; None if it states none, or only FFmpeg estimates them."""
    exact: bool = False
    """Whether the header states each sample, and does not round."""
    stream: int = 1
    """Number of the audio stream, counted from 1."""
    layout: str | None = None
    """Layout that FFmpeg mixes channels down to."""

    def blocks(self, frames: int = FRAMES_PER_BLOCK) -> Iterator[Tensor]:
        """Read the file from its beginning to its end, and warn of what is damaged or missing.

        Yields
        ------
        audio : Tensor
            `(s, t)`, float32, full scale at 1, of about so many frames.

        Raises
        ------
        OSError
            If it cannot be opened.
        ValueError
            If it cannot be decoded, holds no samples, or has samples that are not finite.
        """
        decoder = Decoder(self.pathFilename, self.stream, self.layout)
        position = 0
        for block in decoder.blocks(frames):
            self._check_finite(block, position)
            position += block.shape[-1]
            yield block
        self._check_end(position, decoder)

    def _check_finite(self, block: Tensor, position: int) -> None:
        if math.isfinite(float(block.sum())):
            return
        finite = torch.isfinite(block).all(dim=0)  # A sum may overflow.
        if not bool(finite.all()):
            first = position + int(finite.logical_not().nonzero()[0])
            raise ValueError(
                f"{self.name} has NaN or infinity at {int(finite.logical_not().sum())} samples, the first at "
                f"{first / self.sample_rate:.3f} s: repair or cut out those samples"
            )

    def _check_end(self, length: int, decoder: Decoder) -> None:
        """Warn once of all that is missing."""
        if not length:
            raise ValueError(f"{self.name} is damaged, none of its samples can be decoded: copy or download it again")
        seconds = length / self.sample_rate
        damaged, lost = decoder.damaged, decoder.lost
        missing: list[str] = []
        stated = (self.stated or 0) / self.sample_rate
        if self.kind == "mp3" and not _counts_frames(self.pathFilename, decoder.first_packet):
            stated = 0.0
        if stated - seconds > (0 if self.exact and not damaged else lost + SHORT_BY):
            missing.append(f"ends after {duration(seconds)}, and its header says {duration(stated)}")
        elif self.kind == "ogg" and not _ends_its_streams(self.pathFilename):
            missing.append(f"ends after {duration(seconds)}, in the middle of what its format ends with")
        elif decoder.unfinished > SHORTEST_LOSS:
            damaged, lost = [*damaged, seconds], lost + decoder.unfinished
        if damaged:
            span = f"at {duration(damaged[0])}"
            if len(damaged) > 1:
                span = f"at {len(damaged)} points from {duration(damaged[0])} to {duration(damaged[-1])}"
            missing.insert(0, f"is damaged {span}, where about {duration(lost)} cannot be decoded and is left out")
        if missing:
            warnings.warn(f"{self.name} {'; it '.join(missing)}: was it copied or downloaded whole?", stacklevel=3)


def probe_audio(
    pathFilename: Path, *, name: object = None, stream: int | None = None, downmix: bool = False
) -> AudioFile:
    """Read the header of an audio file.

    Parameters
    ----------
    name : object
        What messages call it. `None`: the path.
    stream : int | None
        Which audio stream, counted from 1.
    downmix : bool
        Mix more than two channels down to stereo by FFmpeg's standard matrix.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ImportError
        If PyAV is missing, which reads it.
    ValueError
        If it is not an audio file, is empty, or has a sample rate or a number of channels that cannot be separated.
    """
    called = printable(pathFilename if name is None else name)
    status = pathFilename.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{called} is a folder: pass the files in it")
    if not status.st_size:
        raise ValueError(f"{called} is empty (0 bytes): copy or download it again")
    try:
        audio = _probe(pathFilename, called, stream or 1)
    except NotDecodableError as error:
        hint = "copy or download it again, or convert it, for example with ffmpeg -i FILE mixture.wav"
        raise ValueError(f"{error}: {hint}") from error
    if not LOWEST_RATE <= audio.sample_rate <= HIGHEST_RATE:
        raise ValueError(
            f"{called} says that it has {audio.sample_rate} samples a second, and audio has "
            f"{LOWEST_RATE} to {HIGHEST_RATE}: its header is damaged, or it is not music"
        )
    if audio.channels < 1:
        raise ValueError(f"{called} says that it has {audio.channels} channels: its header is damaged")
    if audio.channels > 2:
        if not downmix:
            raise ValueError(
                f"{called} has {audio.channels} channels, but at most 2 can be separated: mix it down with --downmix, "
                "or for example with ffmpeg -i FILE -ac 2 mixture.wav"
            )
        return audio._replace(channels=2, layout="stereo")
    return audio


def read_audio(pathFilename: Path) -> tuple[Tensor, int]:
    """Return the audio `(s, t)`, float32, full scale at 1, and the sample rate of a whole file."""
    audio = probe_audio(pathFilename)
    return torch.cat(list(audio.blocks()), dim=-1), audio.sample_rate


def duration(seconds: float) -> str:
    """Return a duration for people: `0.25 s`, `75.0 s`, `1:02:03`."""
    if seconds < 600:
        return f"{seconds:.2f} s" if seconds < 60 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _probe(pathFilename: Path, name: str, number: int) -> AudioFile:
    with open_stream(pathFilename, number, name=name, only_header=True) as (container, stream, by_header):
        context = stream.codec_context
        kind, rate = str(container.format.name), int(context.sample_rate or 0)
        seconds = 0.0
        if stream.duration is not None:
            tick = stream.time_base
            seconds = stream.duration * tick.numerator / tick.denominator
        elif container.duration is not None:
            seconds = container.duration / 1e6
        length = max(0, round(seconds * rate)) or None
        if length is None and next(Decoder(pathFilename, number).blocks(1), None) is None:
            raise ValueError(f"{name} holds no samples: record or export it again")
        stated, exact = None, False
        if kind in ("wav", "w64"):
            stated, exact = by_header, True
        elif kind == "caf":
            exact = context.name.startswith("pcm_")
            stated = stream.frames if exact else None
        elif kind in EXACT:
            stated, exact = length, True
        elif any(each in ROUNDED for each in kind.split(",")):
            stated = length
        return AudioFile(pathFilename, name, rate, int(context.channels or 0), length, kind, stated, exact, number)


def _counts_frames(pathFilename: Path, first_packet: int) -> bool:
    """Tell whether an MP3 file states its length: in a frame before the first that has sound."""
    with pathFilename.open("rb") as file:
        file.seek(max(0, first_packet - LONGEST_FRAME))
        header = file.read(min(LONGEST_FRAME, first_packet))
    return any(mark in header for mark in (b"Xing", b"Info", b"VBRI"))


def _ends_its_streams(pathFilename: Path) -> bool:
    """Tell whether the last page of an Ogg file is marked as the last, and complete."""
    with pathFilename.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 70_000))  # A page has at most 65,307 bytes.
        tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27 or len(tail) < page + 27 + tail[page + 26]:
        return False
    segments = tail[page + 27 : page + 27 + tail[page + 26]]
    return bool(tail[page + 5] & 4) and len(tail) >= page + 27 + len(segments) + sum(segments)
