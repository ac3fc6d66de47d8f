"""Audio streams of any container, decoded by FFmpeg through PyAV, also after damage."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hunterFormsBS.installation import how_to_install
from hunterFormsBS.printable import printable
from hunterFormsBS.songs.headers import PatchedFile
from hunterFormsBS.songs.signals import uninterrupted

__all__ = ["Decoder", "NotDecodableError", "av_module", "is_audio", "open_stream", "texts_of"]

FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,dsf,dts,dtshd,dv,eac3,flac,flv,gxf,iff,ircam,loas,m4v,matroska,mlp,mov,"
    "mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nsv,nut,ogg,paf,pvf,rm,shn,sox,tak,truehd,tta,voc,vqf,w64,wav,webm,"
    "wsd,wtv,wv,xwma"
)
"""Containers without references: a playlist would lead to other files or into the network."""

OPTIONS = {
    "format_whitelist": FORMATS,
    "protocol_whitelist": "none",  # A file of Python is open: a container opens no other file and no connection.
}

PROBED_OF_WAVE = "16384"
"""Bytes: FFmpeg would compare megabytes of samples to all containers, to find DTS among them."""

PROBED_OF_HEADER = "4096"

MPEG_LAYER_3 = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
"""How frames of MP3 begin."""

CHECKSUMMED = ("flac", "tta", "wavpack")
"""Codecs in which all encoders write a checksum of each frame: a frame that fails it is noise."""

SHORTEST_GAP = 0.03
"""Seconds by which time stamps may jump without a loss: some containers round them to milliseconds."""

SHORTEST_LOSS = 0.01
"""Seconds that are worth a warning."""

BEGINNING = 4000
"""Samples that are decoded of a file without the suffix of audio: hardly any other kind of file has so many."""

SCALES = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "flt": 1.0, "dbl": 1.0}
"""Factors that put full scale at 1, for each format of samples."""

TAGS = (b"ID3", b"TAG", b"APE")
"""Beginnings of packets without sound, where files were joined."""


class NotDecodableError(ValueError):
    """FFmpeg finds no audio in a file."""


@contextmanager
def open_stream(
    pathFilename: Path, number: int = 1, *, name: object = None, only_header: bool = False
) -> Generator[tuple[Any, Any, int | None]]:
    """Open a container and its audio stream of this number, counted from 1; the header of WAV and W64 states a length.

    Messages call the file by the name, or else by its path. With `only_header`, the stream need not be decodable.

    Raises
    ------
    ImportError
        If PyAV is not installed.
    OSError
        If the file cannot be opened.
    NotDecodableError
        If this is not audio that FFmpeg decodes.
    ValueError
        If there are fewer audio streams.
    """
    called = printable(pathFilename if name is None else name)
    with ExitStack() as stack:
        # An exception of a signal handler within PyAV's callbacks would be printed and lost.
        with uninterrupted():
            file = stack.enter_context(PatchedFile(pathFilename))
            container = _container(file, called, stack, only_header=only_header)
        streams = container.streams.audio
        if not streams:
            raise NotDecodableError(f"{called} is not audio: FFmpeg finds no audio stream in it")
        if number > len(streams):
            raise ValueError(f"{called} has {len(streams)} audio stream(s): --audio-stream {number} is none of them")
        stream = streams[number - 1]
        if stream.codec_context is None:
            raise NotDecodableError(f"{called} has audio that FFmpeg has no decoder for")
        if stream.codec_context.name in CHECKSUMMED:
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        yield container, stream, file.length


def _container(file: PatchedFile, called: str, stack: ExitStack, *, only_header: bool) -> Any:
    av = av_module()
    for source, kind, options in _attempts(file, only_header=only_header):
        source.seek(0)
        with suppress(av.error.FFmpegError, ValueError):
            return stack.enter_context(av.open(source, format=kind, options=options, metadata_errors="replace"))
    raise NotDecodableError(f"{called} is not audio that FFmpeg decodes")


def _attempts(file: PatchedFile, *, only_header: bool) -> Iterator[tuple[Any, str | None, dict[str, str]]]:
    """Yield what FFmpeg is to open, as which container, and by which options: last any container, which takes longer.

    It compares a file to all containers, and reads more of it than the headers of the most frequent ones.
    """
    begin, first = _after_id3(file)
    options = {**OPTIONS, "skip_initial_bytes": str(begin)}
    if first.startswith(b"fLaC"):
        yield file, "flac", options | ({"probesize": PROBED_OF_HEADER, "fflags": "noparse"} if only_header else {})
    elif MPEG_LAYER_3.match(first):
        yield file, "mp3", options | ({"probesize": PROBED_OF_HEADER} if only_header else {})
    elif file.is_wave:
        options["probesize"] = PROBED_OF_WAVE
        if only_header and (header := file.header()):
            yield header, None, options
    yield file, None, options


def is_audio(pathFilename: Path) -> bool:
    """Tell whether FFmpeg finds audio in a file, and decodes some of its beginning without finding damage."""
    with suppress(ValueError, OSError):
        decoder = Decoder(pathFilename)
        beginning = next(decoder.blocks(BEGINNING), torch.empty(0))
        return beginning.shape[-1] >= BEGINNING and not (decoder.damaged or decoder.unfinished)
    return False


def texts_of(pathFilename: Path) -> dict[str, str]:
    """Return what a file says about its song, by names in lower case; nothing if FFmpeg finds no audio in it."""
    with suppress(NotDecodableError, OSError), open_stream(pathFilename) as (container, stream, _):
        return {str(name).lower(): str(text) for name, text in {**stream.metadata, **container.metadata}.items()}
    return {}


class Decoder:
    """One audio stream from its beginning to its end, and where it is damaged.

    Parameters
    ----------
    number : int
        Of the audio stream, counted from 1.
    layout : str | None
        `'stereo'` mixes down by FFmpeg's standard matrix. `None`: the channels as they are.
    """

    def __init__(self, pathFilename: Path, number: int = 1, layout: str | None = None) -> None:
        self.pathFilename = pathFilename
        self.number = number
        self.layout = layout
        self.damaged: list[float] = []
        """Where something is missing, in seconds of what was decoded."""
        self.lost = 0.0
        """Seconds that are missing there."""
        self.unfinished = 0.0
        """Seconds that cannot be decoded at the end."""
        self.first_packet = 0
        """Its offset in the file."""
        self._seconds = 0.0
        self._bytes = 0
        self._padding: int = 0

    def blocks(self, frames: int) -> Iterator[Tensor]:
        """Yield audio `(s, t)`, float32, full scale at 1, in blocks of about so many frames.

        Raises
        ------
        ValueError
            If the channels cannot be mixed down.
        """
        with open_stream(self.pathFilename, self.number) as (container, stream, _):
            convert = _Converter(self.layout, stream.codec_context.sample_rate)
            pieces = map(convert, chain(self._frames(container, stream), [None]))
            held: Tensor | None = None
            while (block := _block(pieces, frames)) is not None:
                if held is not None:
                    yield held
                held = block
            if held is not None and held.shape[-1] > self._padding:
                yield held[:, : held.shape[-1] - self._padding]

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield decoded frames, and note what lies between them that cannot be decoded."""
        expected: float | None = None
        # MP4 states where the sound ends, and not all versions of FFmpeg leave out what fills up the last frame.
        ends = bool(stream.duration) and "mov" in container.format.name.split(",")
        tick = float(stream.time_base)
        end = tick * ((stream.start_time or 0) + (stream.duration or 0))
        for packet in self._packets(container, stream):
            for frame in self._decoded(packet, stream):
                start = None if frame.pts is None else frame.pts * tick
                gap = 0.0 if start is None or expected is None else start - expected
                loss = max(self.unfinished, gap if gap > SHORTEST_GAP else 0.0)
                duration = frame.samples / frame.sample_rate
                if frame.is_corrupt:  # The decoder made up what it could not read.
                    loss += duration
                if loss > SHORTEST_LOSS:
                    self.damaged.append(self._seconds)
                    self.lost += loss
                self.unfinished = 0.0
                self._seconds += duration
                stop = float((expected or 0.0) if start is None else start) + float(duration)
                expected = stop
                if ends:
                    beyond = round((stop - end) * int(frame.sample_rate))
                    self._padding = beyond if 0 < beyond < frame.samples else 0
                yield frame

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield packets, an empty one at the end; damage of the container ends the file."""
        while True:
            try:
                for packet in container.demux(stream):
                    self.first_packet = self.first_packet or packet.pos or 0
                    yield packet
            except IndexError:
                continue  # PyAV's, for a packet of a stream that FFmpeg found only in the middle of the file
            except av_module().error.FFmpegError:
                yield av_module().Packet()
            return

    def _decoded(self, packet: Any, stream: Any) -> list[Any]:
        """Return the frames of a packet; none where it is damaged."""
        try:
            frames: list[Any] = stream.codec_context.decode(packet if packet.size else None)
        except av_module().error.FFmpegError:
            # What lies between two frames that can be found is one packet, be it a tag or thousands of bytes.
            if bytes(packet)[:3] in TAGS:
                return []
            if self._bytes:
                self.unfinished += packet.size * self._seconds / self._bytes
            elif packet.duration is not None:
                self.unfinished += float(packet.duration * packet.time_base)
            return []
        self._bytes += packet.size
        return frames


def _block(pieces: Iterator[list[Tensor]], frames: int) -> Tensor | None:
    """Return about so many frames, or None at the end."""
    ready: list[Tensor] = []
    waiting = 0
    with uninterrupted():
        for piece in pieces:
            ready += piece
            waiting += sum(part.shape[-1] for part in piece)
            if waiting >= frames:
                break
    return torch.cat(ready, dim=-1) if waiting else None


class _Converter:
    """Frames of any format, and of formats that change on the way, as tensors of the first one's rate and channels."""

    def __init__(self, layout: Any, rate: int) -> None:
        self._layout = layout
        self._rate = rate
        self._kind: tuple[str, str, int] | None = None
        self._scale: float | None = None
        self._resampler: Any = None

    def __call__(self, frame: Any) -> list[Tensor]:
        """Return the samples `(s, t)` that are ready after a frame; after `None`, which is the last, all."""
        kind = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        ready = [] if kind == self._kind else self._begin(frame, kind)
        if frame is None:
            return ready
        if self._scale is not None:
            samples = torch.as_tensor(frame.to_ndarray())
            if not frame.format.is_planar:
                samples = samples.view(-1, frame.layout.nb_channels).T  # (1 t*s) -> (s t)
            if samples.dtype == torch.uint8:
                samples = samples.float() - 128
            return [*ready, samples.float() if self._scale == 1 else samples * self._scale]
        try:
            return ready + _tensors(self._resampler.resample(frame))
        except av_module().error.FFmpegError as error:
            raise ValueError(
                f"FFmpeg cannot mix {frame.layout.name} down by itself: pass it a matrix, as in ffmpeg -i FILE "
                "-af 'pan=stereo|c0=c0|c1=c1' mixture.wav"
            ) from error

    def _begin(self, frame: Any, kind: tuple[str, str, int] | None) -> list[Tensor]:
        """Choose how frames of a kind are converted, and return what is left of those before."""
        rest = [] if self._resampler is None else _tensors(self._resampler.resample(None))
        self._kind, self._scale, self._resampler = kind, None, None
        if frame is not None:
            self._layout = self._layout or frame.layout
            same = getattr(self._layout, "name", self._layout) == frame.layout.name and frame.sample_rate == self._rate
            self._scale = SCALES.get(frame.format.packed.name) if same else None
            if self._scale is None:
                self._resampler = av_module().AudioResampler(format="fltp", layout=self._layout, rate=self._rate)
        return rest


def _tensors(frames: Sequence[Any]) -> list[Tensor]:
    return [torch.as_tensor(frame.to_ndarray()) for frame in frames]


def _after_id3(file: PatchedFile) -> tuple[int, bytes]:
    """Return where the ID3v2 tags at the beginning of a file end, and 10 bytes from there.

    FFmpeg would decompress the tags to any size.
    """
    end = 0
    while True:
        file.seek(end)
        header = file.read(10)
        if len(header) < 10 or header[:3] != b"ID3" or max(header[6:]) > 0x7F:
            return end, header
        size = sum(byte << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
        end += 10 + size + 10 * bool(header[5] & 0x10)


def av_module() -> Any:
    """Return PyAV, or raise an ImportError that says how to install it."""
    try:
        module = import_module("av")
        import_module("av.error")
    except ImportError as error:
        raise ImportError(f"to read audio files and write MP4, install PyAV: {how_to_install('separation')}") from error
    return module
