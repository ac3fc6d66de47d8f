"""Stems written block by block, as libsndfile writes them, into files of any size that appear together."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from types import ModuleType, TracebackType
from typing import IO, Any, NamedTuple, Self

import torch
from torch import Tensor

from hunterFormsBS.choices import FORMATS, Format
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.songs.rates import Resampler
from hunterFormsBS.songs.signals import uninterrupted
from hunterFormsBS.songs.together import Existing, appearing_together, called

__all__ = [
    "FORMATS",
    "AudioFolder",
    "Encoding",
    "Format",
    "Sound",
    "StemFile",
    "WritingError",
    "soundfile_module",
    "writing_together",
]

FRAMES_PER_WRITE = 1 << 15
BYTES_OF_RIFF = 0xFFFF0000  # A little under 4 GiB, to leave room for the headers.

SUBTYPES: dict[tuple[str, int | None], str] = {
    ("wav", 16): "PCM_16",
    ("wav", 24): "PCM_24",
    ("wav", 32): "FLOAT",
    ("flac", 16): "PCM_16",
    ("flac", 24): "PCM_24",
    ("mp3", None): "MPEG_LAYER_III",
    ("ogg", None): "VORBIS",
    ("opus", None): "OPUS",
}
"""How libsndfile calls each pair of a format and a bit depth that can be written; 32 bits are floating point."""

DEPTHS: dict[Format, int | None] = {"wav": 32, "flac": 24, "mp3": None, "ogg": None, "opus": None}
"""The usual bit depth of each format; what is lossy has none."""

RATES: dict[str, tuple[int, ...]] = {
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "opus": (8000, 12000, 16000, 24000, 48000),
}
"""The sample rates that a format can have, if it cannot have any."""

HIGHEST_RATES = {"flac": 655_350, "ogg": 200_000}

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class WritingError(OSError):
    """A file could not be written, for lack of space or because of the disk."""

    @property
    def is_for_all(self) -> bool:
        """Whether the next song would fail as well: the disk is full."""
        return self.errno in FULL


class Encoding(NamedTuple):
    """Kind of a file.

    Parameters
    ----------
    format : Format
    bit_depth : int | None
        16, 24, or for wav 32, which is floating point; None for what is lossy.
    quality : float | None
        From 0, the smallest files, to 10, the best sound, for what is lossy. `None`: libsndfile's own choice.
    """

    format: Format = "wav"
    bit_depth: int | None = 32
    quality: float | None = None

    @property
    def cuts_off(self) -> bool:
        """Whether values beyond full scale are cut off, when it is written or when it is played."""
        return self.bit_depth != 32

    def rate(self, sample_rate: int) -> int:
        """Return the sample rate that a file of this kind gets: the next that the format can have."""
        rates = RATES.get(self.format)
        if rates is not None:
            return min((rate for rate in rates if rate >= sample_rate), default=max(rates))
        return min(sample_rate, HIGHEST_RATES.get(self.format, sample_rate))


class StemFile:
    """A file that is being written; use it in a with statement.

    Parameters
    ----------
    file : IO[bytes]
        Where it is written. It stays open.
    path : Path
        What messages call it.
    sample_rate : int
        Of the file: one that `encoding.rate` returns.
    channels : int
    encoding : Encoding
    length : int
        How many samples will come, about: a WAV file of more than 4 GiB is begun as RF64.
    convert : Callable[..., Tensor] | None
        Applied to blocks before they are written: another sample rate. It gets an empty last block with `last=True`.
    """

    def __init__(
        self,
        file: IO[bytes],
        path: Path,
        *,
        sample_rate: int,
        channels: int,
        encoding: Encoding,
        length: int,
        convert: Callable[..., Tensor] | None = None,
    ) -> None:
        self.path = path
        self.sample_rate = sample_rate
        self.channels = channels
        self.encoding = encoding
        self.clipped = 0
        """How many values were beyond full scale and cut off."""
        self.peak = 0.0
        """The largest absolute value."""
        self.written = 0
        """Samples of each channel so far."""
        self._convert = convert
        large = channels * length * (encoding.bit_depth or 0) // 8 > BYTES_OF_RIFF
        container = {"opus": "OGG", "wav": "RF64" if large else "WAV"}.get(encoding.format, encoding.format.upper())
        keywords: dict[str, Any] = {}
        if encoding.quality is not None:
            keywords["compression_level"] = min(0.99, 1 - encoding.quality / 10)  # LAME refuses 1
            if encoding.format == "mp3":
                keywords["bitrate_mode"] = "VARIABLE"
        self._raw = _File(file)
        self._sound = Sound(
            self._raw,
            "w",
            samplerate=sample_rate,
            channels=channels,
            subtype=SUBTYPES[encoding.format, encoding.bit_depth],
            format=container,
            **keywords,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(OSError, RuntimeError):
            self._sound.close()
        self._raw.close()

    def write(self, block: Tensor) -> None:
        """Write the next samples, `(s, t)`.

        Raises
        ------
        WritingError
            If they cannot be written.
        """
        # Piece by piece: what is made of a block on the way to the file is small, and its memory used again.
        for piece in torch.split(block.float(), FRAMES_PER_WRITE, dim=-1):
            self._write(piece if self._convert is None else self._convert(piece))

    def close(self) -> None:
        """End the file.

        Raises
        ------
        WritingError
            If it cannot be written.
        """
        if self._convert is not None:
            self._write(self._convert(torch.zeros(self.channels, 0), last=True))
        try:
            self._sound.close()
        except RuntimeError as error:
            raise self._error() from error
        finally:
            self._raw.close()
        if self._raw.error is not None:
            raise self._error()

    def _write(self, block: Tensor) -> None:
        if not block.shape[-1]:
            return
        peaks = block.abs()
        self.peak = max(self.peak, float(peaks.max()))
        self.clipped += int((peaks > 1).sum()) if self.encoding.cuts_off else 0
        try:
            self._sound.write(block.T.contiguous().numpy())
        except (AssertionError, RuntimeError) as error:  # fewer samples written than given, or libsndfile's own
            raise self._error() from error
        if self._raw.error is not None:
            raise self._error()
        self.written += block.shape[-1]

    def _error(self) -> WritingError:
        error = self._raw.error
        if error is None:
            return WritingError(errno.EIO, "cannot be written", str(self.path))
        return WritingError(error.errno, error.strerror, str(self.path))


class Sound:
    """What libsndfile reads or writes through a file of Python, and no signal on the way.

    What the handler of a signal raises within a callback is printed and lost, the samples with it: the song would be
    cut off, and the program would go on. Where a signal comes before the thread that writes is waited for, the file is
    closed once a write has ended: libsndfile crashes when a file is closed while it writes it.

    Parameters
    ----------
    *arguments, **keywords : Any
        Of `soundfile.SoundFile`.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._lock = Lock()
        with uninterrupted():
            self._sound = soundfile_module().SoundFile(*arguments, **keywords)
        self.shape: tuple[int, int] = (int(self._sound.frames), int(self._sound.channels))
        self.sample_rate = int(self._sound.samplerate)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def read(self, frames: int) -> Any:
        """Return the next samples, at most so many, as an array `(t, s)` of float32."""
        with uninterrupted():
            return self._sound.read(frames, dtype="float32", always_2d=True)

    def write(self, samples: Any) -> None:
        """Write samples `(t, s)`."""
        with uninterrupted(), self._lock:
            self._sound.write(samples)

    def close(self) -> None:
        """End the file."""
        with uninterrupted(), self._lock:
            self._sound.close()


class _File(io.RawIOBase):
    """A file for libsndfile, which learns only that something was not written; what it was is kept here."""

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


class AudioFolder:
    """Files that are about to appear, as `writing_together` makes it."""

    def __init__(
        self, files: Mapping[str, Path], new: Mapping[str, IO[bytes]], sample_rate: int, rate: int, encoding: Encoding
    ) -> None:
        self._files = files
        self._new = new
        self._sample_rate = sample_rate
        self._rate = rate
        self._encoding = encoding
        self.opened = ExitStack()
        self.written: dict[str, StemFile] = {}
        self.factor = 1.0
        """By how much all stems were lowered."""

    def open(self, name: str, channels: int, length: int) -> StemFile:
        """Begin a file of some channels and about so many samples."""
        self.written[name] = StemFile(
            self._new[name],
            self._files[name],
            sample_rate=self._rate,
            channels=channels,
            encoding=self._encoding,
            length=length,
            convert=None if self._rate == self._sample_rate else Resampler(self._sample_rate, self._rate),
        )
        return self.opened.enter_context(self.written[name])

    def write(self, name: str, audio: Tensor) -> int:
        """Write a whole file `(s, t)`; return how many values were beyond full scale and cut off."""
        file = self.open(name, *audio.shape)
        for block in torch.split(audio, FRAMES_PER_WRITE, dim=-1):
            file.write(block)
        return file.clipped


@contextmanager
def writing_together(
    output: Path,
    files: Mapping[str, Path],
    sample_rate: int,
    encoding: Encoding = Encoding(),  # noqa: B008  # it cannot change
    *,
    existing: Existing = "refuse",
    scale: bool = False,
    finish: Callable[[Path], object] | None = None,
) -> Generator[AudioFolder]:
    """Make the files written in the with statement appear together at its end, or, after an error, none.

    Parameters
    ----------
    output : Path
        The folder that all files are below, as in `appearing_together`.
    files : Mapping[str, Path]
        The file that each stem gets. All must be written.
    sample_rate : int
        Of the stems. Where the format cannot have it, files get the next one that it can have.
    encoding : Encoding
    existing : Existing, default "refuse"
        What becomes of files that exist.
    scale : bool, default False
        Lower all stems by one factor if one of them goes beyond full scale, where the encoding would cut it off.
    finish : Callable[[Path], object] | None, default None
        Called with each complete file before they appear.

    Raises
    ------
    OSError, ValueError
        If a file cannot be written.
    """
    rate = encoding.rate(sample_rate)
    scale = scale and encoding.cuts_off
    with appearing_together(output, [*files.values()], existing=existing) as hidden, ExitStack() as scratch:
        new = dict(zip(files, hidden, strict=True))
        first: Mapping[str, IO[bytes]] = new
        if scale:
            with uninterrupted():
                first = {
                    name: scratch.enter_context(TemporaryFile(dir=Path(str(file.name)).parent))
                    for name, file in new.items()
                }
        folder = AudioFolder(files, first, sample_rate, rate, Encoding() if scale else encoding)
        with folder.opened:
            yield folder
        if scale:
            folder.factor = 1 / max(1.0, *(file.peak for file in folder.written.values()))
            for name, written in folder.written.items():
                _encode(first[name], folder.factor, new[name], written, encoding)
        for name, file in new.items():
            if finish is not None:
                with called(files[name]):
                    finish(Path(str(file.name)))


def _encode(unscaled: IO[bytes], factor: float, file: IO[bytes], written: StemFile, encoding: Encoding) -> None:
    """Write what is in floating point so far, multiplied by a factor, as it is to be."""
    unscaled.seek(0)
    with (
        Sound(unscaled) as sound,
        StemFile(
            file,
            written.path,
            sample_rate=written.sample_rate,
            channels=written.channels,
            encoding=encoding,
            length=written.written,
        ) as final,
    ):
        while len(samples := sound.read(FRAMES_PER_WRITE)):
            final.write(torch.as_tensor(samples).T * factor)


def soundfile_module() -> ModuleType:
    """Return soundfile, or raise an ImportError that says how to install it."""
    try:
        return import_module("soundfile")
    except ImportError as error:
        raise ImportError(
            f"to read and write audio files, install soundfile: {how_to_install('separation')}"
        ) from error
