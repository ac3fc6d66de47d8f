"""Audio files: reading what libsndfile reads, resampling, and writing stems so that none is ever half there."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hunterFormsBS.ffmpeg import AudioProperties as AudioProperties
from hunterFormsBS.ffmpeg import decode_with_ffmpeg, has_ffmpeg, probe_with_ffmpeg
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.songs.together import appearing_together
from hunterFormsBS.songs.writing import Encoding, StemFile, soundfile_module

FRAMES_PER_BLOCK = 1 << 18

LOWEST_RATE, HIGHEST_RATE = 1000, 768000  # Hz
SHORT_BY = 0.1
"""Seconds that a file may lack without a word: encoders round."""

AUDIO_SUFFIXES = frozenset(
    {".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".w64", ".wav"}
    | {".aac", ".ac3", ".alac", ".m4a", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma", ".wv"}
)
"""Files that are taken from folders."""


def probe_audio(pathFilename: Path) -> AudioProperties:
    """Read the header of an audio file with one or two channels.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no audio file, is empty, or has more than two channels.
    """
    soundfile = soundfile_module()
    if pathFilename.is_dir():
        raise IsADirectoryError(f"{pathFilename} is a folder: pass the files in it")
    with pathFilename.open("rb") as file:
        if not file.read(1):
            raise ValueError(f"{pathFilename} is empty (0 bytes): copy or download it again")
    try:
        header = soundfile.info(str(pathFilename))
        properties = AudioProperties(int(header.frames), int(header.samplerate), int(header.channels))
    # TypeError: a file without a header, to judge by its name, whose sample rate would have to be stated.
    except (soundfile.SoundFileError, TypeError) as error:
        probed = probe_with_ffmpeg(pathFilename)
        if probed is None:
            raise ValueError(
                f"{pathFilename} is not audio that libsndfile reads{'' if has_ffmpeg() else ', and PyAV is not here'}: "
                f"{'convert it' if has_ffmpeg() else how_to_install('av') + ' reads all that FFmpeg does'}, or for "
                "example ffmpeg -i FILE mixture.wav"
            ) from error
        properties = probed
    if not LOWEST_RATE <= properties.sample_rate <= HIGHEST_RATE:
        raise ValueError(
            f"{pathFilename} says that it has {properties.sample_rate} samples a second, and audio has "
            f"{LOWEST_RATE} to {HIGHEST_RATE}: its header is damaged, or it is no music"
        )
    if properties.length < 1:
        raise ValueError(f"{pathFilename} holds no samples: record or export it again")
    if properties.channels > 2:
        raise ValueError(
            f"{pathFilename} has {properties.channels} channels, but at most 2 can be separated: mix it down, "
            "for example with ffmpeg -i FILE -ac 2 mixture.wav"
        )
    return properties


def read_audio(pathFilename: Path) -> tuple[Tensor, int]:
    """Read a whole file that `probe_audio` accepts.

    Returns
    -------
    audio : Tensor
        `(s, t)`, float32, full scale at 1.
    sample_rate : int

    Raises
    ------
    OSError, ValueError
        As `read_blocks`.
    """
    sample_rate = probe_audio(pathFilename).sample_rate
    return torch.cat(list(read_blocks(pathFilename)), dim=-1), sample_rate


def read_blocks(pathFilename: Path, frames: int = FRAMES_PER_BLOCK) -> Iterator[Tensor]:
    """Read a file that `probe_audio` accepts, block by block: `(s, t)`, float32, full scale at 1.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it cannot be decoded, or has samples that are not finite.
    """
    properties = probe_audio(pathFilename)
    place = 0
    for audio in _decoded(pathFilename, frames):
        _check_finite(audio, pathFilename, place, properties.sample_rate)
        place += audio.shape[-1]
        yield audio
    missing = properties.length - place
    if place and missing > properties.sample_rate * SHORT_BY:
        warnings.warn(
            f"{pathFilename} ends after {place / properties.sample_rate:.1f} s, and its header says "
            f"{properties.length / properties.sample_rate:.1f} s: was it copied or downloaded whole?",
            stacklevel=2,
        )
    if not place:
        raise ValueError(f"{pathFilename} is damaged, none of its samples can be decoded: copy or download it again")


def _decoded(pathFilename: Path, frames: int) -> Iterator[Tensor]:
    soundfile = soundfile_module()
    try:
        file = soundfile.SoundFile(str(pathFilename))
    except (soundfile.SoundFileError, TypeError):
        yield from decode_with_ffmpeg(pathFilename, frames)
        return
    try:
        with file:
            while len(samples := file.read(frames, dtype="float32", always_2d=True)):
                yield torch.as_tensor(samples).T.contiguous()  # (t s) -> (s t)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{pathFilename} is damaged: copy or download it again ({error})") from error


def _check_finite(audio: Tensor, pathFilename: Path, place: int, sample_rate: int) -> None:
    finite = torch.isfinite(audio).all(dim=0)
    if not bool(finite.all()):
        first = place + int(finite.logical_not().nonzero()[0])
        raise ValueError(
            f"{pathFilename} has NaN or infinity at {int(finite.logical_not().sum())} samples, the first at "
            f"{first / sample_rate:.3f} s: repair or cut out those samples"
        )


class Resampler:
    """Convert the sample rate of audio that comes in blocks.

    Parameters
    ----------
    rate_from, rate_to : int
        Sample rates in Hz.
    """

    def __init__(self, rate_from: int, rate_to: int) -> None:
        self.rates = (rate_from, rate_to)
        self._stream: Any = None

    def __call__(self, block: Tensor, *, last: bool = False) -> Tensor:
        """Return the samples that are ready, `(s, t')`, after a block `(s, t)`; after the last one all."""
        if self.rates[0] == self.rates[1]:
            return block
        if self._stream is None:
            self._stream = _soxr().ResampleStream(*self.rates, block.shape[0], dtype="float32", quality="VHQ")
        # A copy even where the strides of a single sample may stay, from which soxr concludes another layout.
        frames = block.float().T.clone(memory_format=torch.contiguous_format)
        converted = self._stream.resample_chunk(frames.numpy(), last=last)
        return torch.as_tensor(converted).reshape(-1, block.shape[0]).T.contiguous()


def resample(audio: Tensor, rate_from: int, rate_to: int, length: int | None = None) -> Tensor:
    """Convert the sample rate of audio `(s, t)`.

    Parameters
    ----------
    audio : Tensor
        `(s, t)`, float32, on the CPU.
    rate_from, rate_to : int
        Sample rates in Hz.
    length : int | None = None
        Samples to return. `None`: the duration of the audio, rounded up to a whole sample.

    Returns
    -------
    resampled : Tensor
        `(s, t)`, float32.
    """
    length = math.ceil(audio.shape[-1] * rate_to / rate_from) if length is None else length
    if rate_from == rate_to and length == audio.shape[-1]:
        return audio
    if rate_from != rate_to:
        # A copy even where the strides of a single sample may stay, from which soxr concludes another layout.
        frames = audio.T.clone(memory_format=torch.contiguous_format)
        converted = _soxr().resample(frames.numpy(), rate_from, rate_to, quality="VHQ")
        audio = torch.as_tensor(converted).T.contiguous()
    return torch.nn.functional.pad(audio[:, :length], (0, max(0, length - audio.shape[-1])))


class AudioFolder:
    """Files that are about to appear; `writing_together` makes one.

    Parameters
    ----------
    files : Mapping[str, Path]
        The file that each stem gets.
    places : Mapping[str, Path]
        Where it is written until all are complete.
    sample_rate : int
        Of the stems. Where the format cannot have it, files get the next one that it can have.
    encoding : Encoding
    """

    def __init__(
        self, files: Mapping[str, Path], places: Mapping[str, Path], sample_rate: int, encoding: Encoding
    ) -> None:
        self.files = files
        self.places = places
        self.sample_rate = sample_rate
        self.encoding = encoding
        self.opened = ExitStack()

    def open(self, name: str, channels: int, length: int) -> StemFile:
        """Begin a file of some channels and about so many samples, under a hidden name."""
        rate = self.encoding.rate(self.sample_rate)
        file = StemFile(
            self.places[name],
            self.files[name],
            sample_rate=rate,
            channels=channels,
            encoding=self.encoding,
            length=length,
            convert=None if rate == self.sample_rate else Resampler(self.sample_rate, rate),
        )
        return self.opened.enter_context(file)

    def write(self, name: str, audio: Tensor) -> int:
        """Write a whole file `(s, t)`; return how many values were beyond full scale and cut off."""
        file = self.open(name, *audio.shape)
        for start in range(0, audio.shape[-1], FRAMES_PER_BLOCK):
            file.write(audio[:, start : start + FRAMES_PER_BLOCK])
        return file.clipped


@contextmanager
def writing_together(
    output: Path,
    files: Mapping[str, Path],
    sample_rate: int,
    encoding: Encoding = Encoding(),  # noqa: B008  # it cannot change
    *,
    overwrite: bool = False,
    finish: Callable[[Sequence[Path]], object] | None = None,
) -> Generator[AudioFolder]:
    """Make the files written in the with statement appear together at its end, or, after an error, none.

    Folders are made where they do not exist, and removed again after an error.

    Parameters
    ----------
    output : Path
        The folder that all files are below.
    files : Mapping[str, Path]
        The file that each stem gets. All must be written.
    sample_rate : int
    encoding : Encoding
    overwrite : bool
        Whether files that exist may be replaced.
    finish : Callable[[Sequence[Path]], object] | None
        Called with the complete files, in the order of `files`, before they appear.

    Raises
    ------
    OSError, ValueError
        If a file cannot be written.
    """
    with appearing_together(output, list(files.values()), overwrite=overwrite) as places:
        folder = AudioFolder(files, dict(zip(files, places, strict=True)), sample_rate, encoding)
        with folder.opened:
            yield folder
        if finish is not None:
            finish(places)


def _soxr() -> ModuleType:
    try:
        return import_module("soxr")
    except ImportError as error:
        raise ImportError(f"to convert sample rates, install soxr: {how_to_install('separation')}") from error
