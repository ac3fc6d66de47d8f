"""Blocks of samples on their way into a file: libsndfile's encoders, and FFmpeg's for MP4."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import IO, Any

import torch
from torch import Tensor

from hunterFormsBS.installation import how_to_install
from hunterFormsBS.songs.encodings import BITS_PER_CHANNEL, Encoding, bit_rates_of_mp3
from hunterFormsBS.songs.ffmpeg import av_module
from hunterFormsBS.songs.signals import uninterrupted
from hunterFormsBS.songs.stemAtom import NUM_STEMS, add_stem_atom

__all__ = ["Encoder", "FloatEncoder", "floats_of", "open_encoders", "soundfile_module"]

FULL_SCALE = {16: 2.0**15, 24: 2.0**23}
AAC_PER_CHANNEL = (32_000, 160_000)
"""Bits a second of each channel at quality 0 and 10."""
USUAL_AAC_PER_CHANNEL = 128_000
SFC_RF64_AUTO_DOWNGRADE = 0x1210


class Encoder:
    """Writes the samples of one stem; its file may hold those of others.

    Signals wait during calls of a library: an exception of their handlers within its callbacks would be printed and
    lost. A lock keeps the main thread from closing the file during a write, which crashes libraries.
    """

    def __init__(self, raw: RecordingFile) -> None:
        self._raw = raw
        self._lock = Lock()

    @property
    def error(self) -> OSError | None:
        """The first error of the file."""
        return self._raw.error

    def write(self, block: Tensor) -> None:
        """Write the next samples, `(s, t)`, float32, or raise an OSError."""
        self._guarded(self._encode, block)

    def close(self) -> None:
        """End the file, or raise an OSError."""
        try:
            self._guarded(self._end)
        finally:
            self._close_raw()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """Close the file, which is about to be removed, without writing any more."""
        self._raw.error = self._raw.error or OSError(errno.ECANCELED, "is removed")
        with suppress(OSError):
            self.close()

    def _guarded(self, action: Any, *arguments: object) -> None:
        try:
            with uninterrupted(), self._lock:
                action(*arguments)
        except (AssertionError, RuntimeError, ValueError, OSError) as error:  # of any library, or fewer samples written
            raise self.error or OSError(errno.EIO, "cannot be written") from error
        if self.error is not None:
            raise self.error

    def _encode(self, block: Tensor) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def _close_raw(self) -> None:
        self._raw.close()


class SoundEncoder(Encoder):
    """A file by libsndfile; see `open_encoders`."""

    def __init__(self, file: IO[bytes], encoding: Encoding, sample_rate: int, channels: int) -> None:
        super().__init__(RecordingFile(file))
        soundfile = soundfile_module()
        # RF64 becomes an ordinary WAV at its end where it has less than 4 GiB: nobody need know the length before.
        container = {"opus": "OGG", "wav": "RF64"}.get(encoding.format, encoding.format.upper())
        with uninterrupted():
            self._sound: Any = soundfile.SoundFile(
                self._raw,
                "w",
                samplerate=sample_rate,
                channels=channels,
                subtype=encoding.codec,
                format=container,
                **_compression(encoding, sample_rate, channels),
            )
            if container == "RF64":
                # soundfile hands on few of libsndfile's commands.
                command, null, handle = soundfile._snd.sf_command, soundfile._ffi.NULL, self._sound._file
                command(handle, SFC_RF64_AUTO_DOWNGRADE, null, 1)

    def _encode(self, block: Tensor) -> None:
        self._sound.write(block.T.contiguous().numpy())

    def _end(self) -> None:
        self._sound.close()


class FloatEncoder(Encoder):
    """Raw samples, float32, in a scratch file until all of them are known."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(RecordingFile(file))

    def _encode(self, block: Tensor) -> None:
        self._raw.write(block.T.contiguous().numpy().data)

    def _end(self) -> None:
        self._raw.seek(0)


def floats_of(file: IO[bytes], channels: int, frames: int) -> Iterator[Tensor]:
    """Yield what a `FloatEncoder` wrote, `(s, t)`, in blocks of so many frames."""
    file.seek(0)
    while content := file.read(4 * channels * frames):
        yield torch.frombuffer(bytearray(content), dtype=torch.float32).reshape(-1, channels).T


def _compression(encoding: Encoding, sample_rate: int, channels: int) -> dict[str, Any]:
    """Return what libsndfile takes for a quality or a bit rate."""
    if encoding.bit_rate is not None:
        bits = encoding.bit_rate
        if encoding.codec == "OPUS":
            least, most = (channels * each for each in BITS_PER_CHANNEL["OPUS"])
            return {"compression_level": (most - bits) / (most - least)}
        least, *_, most = bit_rates_of_mp3(sample_rate)
        # The whole kilobits of what it computes count.
        return {"bitrate_mode": "CONSTANT", "compression_level": max(0.0, (most - bits / 1000 - 0.5) / (most - least))}
    if encoding.quality is None:
        return {}
    level = {"compression_level": min(0.99, 1 - encoding.quality / 10)}  # LAME refuses 1
    return {**level, "bitrate_mode": "VARIABLE"} if encoding.format == "mp3" else level


class Mp4Encoder(Encoder):
    """A track of an MP4 file by FFmpeg."""

    def __init__(self, movie: _Movie, number: int) -> None:
        super().__init__(movie.raw)
        self._lock = movie.lock
        self._movie = movie
        self._number = number

    def _encode(self, block: Tensor) -> None:
        self._movie.write(self._number, block)

    def _end(self) -> None:
        self._movie.end(self._number)

    def _close_raw(self) -> None:
        if not self._movie.open_tracks:
            self._raw.close()


class _Movie:
    """An MP4 file with one track, or with the mixture and four stems, of which those that are missing are silent."""

    def __init__(
        self, file: IO[bytes], encoding: Encoding, sample_rate: int, channels: int, names: Sequence[str]
    ) -> None:
        av = av_module()
        self.raw = RecordingFile(file)
        self.lock = Lock()
        self.open_tracks = set(range(len(names)))
        self._names = [*names, *[""] * (1 + NUM_STEMS - len(names))] if encoding.is_together else list(names)
        self._depth = encoding.bit_depth
        self._rate, self._layout = sample_rate, "mono" if channels == 1 else "stereo"
        self._format = {None: "fltp", 16: "s16p", 24: "s32p"}[self._depth]
        self._written = [0] * len(self._names)
        with uninterrupted():
            self._container: Any = av.open(self.raw, "w", format="mp4" if encoding.is_together else "ipod")
            self._tracks = [self._container.add_stream(encoding.codec, sample_rate) for _ in self._names]
        for track, name in zip(self._tracks, self._names, strict=True):
            track.codec_context.layout, track.codec_context.format = self._layout, self._format
            if self._depth is None:
                least, most = AAC_PER_CHANNEL
                per_channel = (
                    USUAL_AAC_PER_CHANNEL
                    if encoding.quality is None
                    else least + round((most - least) * encoding.quality / 10)
                )
                track.codec_context.bit_rate = encoding.bit_rate or channels * per_channel
            if len(self._names) > 1:
                track.metadata["handler_name"] = track.metadata["title"] = name

    def write(self, number: int, block: Tensor) -> None:
        """Write samples of a track, and with those of the first as much silence to the tracks without a stem."""
        self._mux(number, self._samples(block))
        if number == 0:
            for silent in range(1, len(self._names)):
                if not self._names[silent]:
                    self._mux(silent, self._samples(torch.zeros_like(block)))

    def end(self, number: int) -> None:
        """End a track, and with the last one the file."""
        self.open_tracks.discard(number)
        if self.open_tracks:
            return
        if self.raw.error is None:
            for track in self._tracks:
                self._container.mux(track.encode(None))
        self._container.close()
        if len(self._names) > 1 and self.raw.error is None:
            add_stem_atom(self.raw, self._names[1:])

    def _samples(self, block: Tensor) -> Any:
        if self._depth is not None:
            scale = FULL_SCALE[self._depth]
            block = (block.double() * scale).round().clamp(-scale, scale - 1).to(torch.int32)
            block = block.to(torch.int16) if self._depth == 16 else block * 256
        return block.contiguous().numpy()

    def _mux(self, number: int, samples: Any) -> None:
        frame = av_module().AudioFrame.from_ndarray(samples, format=self._format, layout=self._layout)
        frame.sample_rate, frame.pts = self._rate, self._written[number]
        self._written[number] += frame.samples
        self._container.mux(self._tracks[number].encode(frame))


def open_encoders(
    files: Sequence[IO[bytes]], names: Sequence[str], encoding: Encoding, sample_rate: int, channels: int
) -> list[Encoder]:
    """Begin a file for each stem, or one for all of them where the encoding puts them together.

    Parameters
    ----------
    files : Sequence[IO[bytes]]
        One for each stem, open for reading and writing; they stay open.
    names : Sequence[str]
        Of the stems. Of those in one file the first is the mixture.
    sample_rate : int
        One that `encoding.rate` returns.

    Raises
    ------
    ImportError
        If a library is missing.
    """
    if encoding.is_together:
        movie = _Movie(files[0], encoding, sample_rate, channels, names)
        return [Mp4Encoder(movie, number) for number in range(len(names))]
    if encoding.format == "m4a":
        return [
            Mp4Encoder(_Movie(file, encoding, sample_rate, channels, [name]), 0)
            for file, name in zip(files, names, strict=True)
        ]
    return [SoundEncoder(file, encoding, sample_rate, channels) for file in files]


def soundfile_module() -> ModuleType:
    """Return soundfile, or raise an ImportError that says how to install it."""
    try:
        return import_module("soundfile")
    except ImportError as error:
        raise ImportError(f"to write audio files, install soundfile: {how_to_install('separation')}") from error


class RecordingFile(io.RawIOBase):
    """A file for libraries, which learn only that something was not written; the error is kept. The file stays open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = os.fdopen(os.dup(file.fileno()), "r+b")
        self.error: OSError | None = None

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return self._file.seek(offset, whence)  # which writes what is in the buffer
        except OSError as error:
            self.error = self.error or error
            return self._file.raw.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any, /) -> int:
        if self.error is not None:
            return 0
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            return 0

    def close(self) -> None:
        if not self.closed:
            try:
                self._file.close()
            except OSError as error:
                self.error = self.error or error
                with suppress(OSError):
                    self._file.raw.close()
        super().close()
