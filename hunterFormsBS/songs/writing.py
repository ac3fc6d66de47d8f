"""Stems written block by block into files of any size that appear together."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, NamedTuple, Self

import torch
from torch import Tensor

from hunterFormsBS.songs.encoders import Encoder, FloatEncoder, floats_of, open_encoders
from hunterFormsBS.songs.encodings import Encoding
from hunterFormsBS.songs.levels import loudness
from hunterFormsBS.songs.rates import Resampler
from hunterFormsBS.songs.signals import uninterrupted
from hunterFormsBS.songs.threads import side_by_side
from hunterFormsBS.songs.together import Existing, appearing_together, called, scratch_file

__all__ = ["FULL", "AudioFolder", "Level", "StemFile", "WritingError", "writing_together"]

FRAMES_PER_WRITE = 1 << 15

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Errors of a full disk, after which the next song would fail as well."""


class WritingError(OSError):
    """A file could not be written, for lack of space or because of the disk."""


class Level(NamedTuple):
    """Level of the highest stem of a song: all stems are multiplied by one factor."""

    peak: float | None = None
    """Highest absolute value, in dB of full scale."""
    lufs: float | None = None
    """Integrated loudness of EBU R 128."""
    at_most: float | None = None
    """In dB of full scale: stems are lowered, and never raised, until no value is higher."""

    def factor(self, peak: float, loudest: Callable[[], float]) -> float:
        """Return the factor for stems of this peak and, if `lufs` is set, this loudness; 1 for silence."""
        factor = 1.0
        if self.peak is not None and peak:
            factor = 10 ** (self.peak / 20) / peak
        elif self.lufs is not None and (measured := loudest()) > -70:
            factor = 10 ** ((self.lufs - measured) / 20)
        if self.at_most is not None and peak:
            factor = min(factor, 10 ** (self.at_most / 20) / peak)
        return factor


class StemFile:
    """A stem that is being written; use it in a with statement.

    Parameters
    ----------
    path : Path
        What messages call it.
    sample_rate : int
        That the encoder takes.
    cuts_off : bool
        Whether values beyond full scale are cut off.
    convert : Resampler | None, default None
        Converts blocks to that sample rate.
    """

    def __init__(
        self,
        encoder: Encoder,
        path: Path,
        *,
        sample_rate: int,
        channels: int,
        cuts_off: bool,
        convert: Resampler | None = None,
    ) -> None:
        self.path = path
        self.sample_rate = sample_rate
        self.channels = channels
        self.clipped = 0
        """How many values were beyond full scale and cut off."""
        self.peak = 0.0
        """The largest absolute value."""
        self.written = 0
        """Samples of each channel so far."""
        self._encoder = encoder
        self._cuts_off = cuts_off
        self._convert = convert

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._encoder.abandon()

    def write(self, block: Tensor) -> None:
        """Write the next samples, `(s, t)`, or raise a `WritingError`."""
        # Piece by piece: intermediate tensors are small, and their memory is used again.
        for piece in torch.split(block.float(), FRAMES_PER_WRITE, dim=-1):
            self._write(piece if self._convert is None else self._convert(piece))

    def close(self) -> None:
        """End the file, or raise a `WritingError`."""
        if self._convert is not None:
            self._write(self._convert.rest(self.channels))
        self._do(self._encoder.close)

    def _write(self, block: Tensor) -> None:
        if not block.shape[-1]:
            return
        peaks = block.abs()
        self.peak = max(self.peak, float(peaks.max()))
        self.clipped += int((peaks > 1).sum()) if self._cuts_off else 0
        self._do(self._encoder.write, block)
        self.written += block.shape[-1]

    def _do(self, action: Callable[..., object], *arguments: object) -> None:
        try:
            action(*arguments)
        except OSError as error:
            raise WritingError(error.errno, error.strerror, str(self.path)) from error


class AudioFolder:
    """Files that are about to appear, as `writing_together` makes it."""

    def __init__(
        self,
        paths: Sequence[Path],
        names: Sequence[str],
        files: Sequence[IO[bytes]],
        scratch: Sequence[IO[bytes]],
        rates: tuple[int, int],
        encoding: Encoding,
    ) -> None:
        self._paths = paths
        self._names = names
        self._files = files
        self._scratch = scratch
        self._rates = rates
        self._encoding = encoding
        self.opened = ExitStack()
        self.written: list[StemFile] = []
        self.factor = 1.0
        """By how much all stems were multiplied."""

    def open(self, channels: int) -> list[StemFile]:
        """Begin the files of all stems, in their order."""
        scratch: list[Encoder] = [FloatEncoder(file) for file in self._scratch]
        return self._begin(self.opened, scratch or self._encoders(channels), channels, convert=True)

    def encode(self, level: Level) -> None:
        """Multiply the samples in scratch files by a factor, and encode them."""
        channels = self.written[0].channels

        def stems() -> list[Iterator[Tensor]]:
            return [floats_of(file, channels, FRAMES_PER_WRITE) for file in self._scratch]

        self.factor = level.factor(
            max(file.peak for file in self.written),
            lambda: max(loudness(stem, self._rates[1], channels) for stem in stems()),
        )
        with ExitStack() as opened:
            final = self._begin(opened, self._encoders(channels), channels, convert=False)
            for blocks in zip(*stems(), strict=True):
                side_by_side(StemFile.write, final, [block * self.factor for block in blocks])

    def scratch(self) -> IO[bytes]:
        """Open a temporary file beside the others, as `scratch_file` does."""
        return scratch_file(Path(str(self._files[0].name)).parent)

    def _encoders(self, channels: int) -> list[Encoder]:
        return open_encoders(self._files, self._names, self._encoding, self._rates[1], channels)

    def _begin(self, opened: ExitStack, encoders: Sequence[Encoder], channels: int, *, convert: bool) -> list[StemFile]:
        self.written = [
            StemFile(
                encoder,
                path,
                sample_rate=self._rates[1],
                channels=channels,
                cuts_off=self._encoding.cuts_off,
                convert=Resampler(*self._rates) if convert and self._rates[0] != self._rates[1] else None,
            )
            for encoder, path in zip(encoders, self._paths, strict=True)
        ]
        for file in self.written:
            opened.enter_context(file)
        return self.written


@contextmanager
def writing_together(
    output: Path,
    files: Mapping[str, Path],
    sample_rate: int,
    encoding: Encoding = Encoding(),  # noqa: B008  # it cannot change
    *,
    existing: Existing = "refuse",
    level: Level = Level(),  # noqa: B008  # it cannot change
    finish: Callable[[Path], object] | None = None,
    pictures: Mapping[Path, Path] = MappingProxyType({}),
    draw: Callable[[Path, Path], object] | None = None,
) -> Generator[AudioFolder]:
    """Make the files written in the with statement appear together at its end, or, after an error, none.

    Parameters
    ----------
    output : Path
        The folder that all files are below, as in `appearing_together`.
    files : Mapping[str, Path]
        The file that each stem gets; one for all of them if the encoding puts them together. All must be written.
    sample_rate : int
        Of the stems. Where the format cannot have it, files get the next one that it can have.
    existing : Existing, default "refuse"
        What becomes of files that exist.
    level : Level
        Multiplies all stems by one factor. They are in scratch files until it is known.
    finish : Callable[[Path], object] | None, default None
        Called with each complete file before they appear.
    pictures : Mapping[Path, Path]
        For files the pictures that appear with them.
    draw : Callable[[Path, Path], object] | None, default None
        Called with each complete file that has a picture, and where that goes.

    Raises
    ------
    OSError, ValueError
        If a file cannot be written.
    """
    paths = list(dict.fromkeys(files.values()))
    with (
        appearing_together(output, [*paths, *pictures.values()], existing=existing) as hidden,
        ExitStack() as scratches,
    ):
        new = dict(zip([*paths, *pictures.values()], hidden, strict=True))
        names = {path: Path(str(file.name)) for path, file in new.items()}
        scratch: list[IO[bytes]] = []
        if level != Level():
            with uninterrupted():
                scratch = [scratches.enter_context(scratch_file(names[path].parent)) for path in files.values()]
        rates = sample_rate, encoding.rate(sample_rate)
        folder = AudioFolder(
            [*files.values()], [*files], [new[path] for path in files.values()], scratch, rates, encoding
        )
        with folder.opened:
            yield folder
        if scratch:
            folder.encode(level)
        for path in paths:
            with called(path):
                if finish is not None:
                    finish(names[path])
                if draw is not None and path in pictures:
                    draw(names[path], names[pictures[path]])
