"""Separate audio files: `python -m hunterFormsBS --help`."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
import unicodedata
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor

from hunterFormsBS import catalogue
from hunterFormsBS.audioFile import (
    AUDIO_SUFFIXES,
    AudioProperties,
    Resampler,
    probe_audio,
    read_blocks,
    writing_together,
)
from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import CheckpointError, from_checkpoint
from hunterFormsBS.checkpoint.configuration import load_configuration
from hunterFormsBS.checkpoint.weightsFile import read_file
from hunterFormsBS.commandLine import DTYPES, PROGRAM, RESIDUAL, Options, UsageError, parser
from hunterFormsBS.printable import say
from hunterFormsBS.separation import separate_stream
from hunterFormsBS.songs.signals import ending_on_signals
from hunterFormsBS.songs.together import check_targets, finish_leftovers, identities
from hunterFormsBS.songs.writing import DEPTHS, SUBTYPES, Encoding, WritingError

LONGEST_NAME = 255
"""Bytes of the name of a file, in the file systems that people have."""

INTERRUPTED = 130  # What shells report for a program that SIGINT ended.

# Everything that bad files and settings raise. What is not here is a bug, and shows its traceback.
FAILURES = (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


class Settings(NamedTuple):
    """What the configuration says about separating, as far as the command line does not say otherwise.

    Parameters
    ----------
    sample_rate : int
        Of the audio that the model takes.
    sizes : dict[str, Any]
        Keyword arguments of `separate`.
    names : list[str]
        Of the stems; empty if the configuration names none.
    normalize : bool
        Give the model songs whose mono mix has mean 0 and standard deviation 1.
    """

    sample_rate: int
    sizes: dict[str, Any]
    names: list[str]
    normalize: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Separate the files that the arguments name.

    Parameters
    ----------
    argv : Sequence[str] | None = None
        Arguments without the program's name. `None`: those of the process.

    Returns
    -------
    status : int
        0, 1 or 130, as `--help` says.

    Raises
    ------
    SystemExit
        With 2 if the arguments cannot be used, with 0 after `--help`.
    """
    reader = parser()
    options = reader.parse_args(argv, Options())
    with _one_line_warnings():
        try:
            return _separate_all(options)
        except UsageError as error:
            reader.error(str(error))
        except KeyboardInterrupt:
            _tell("interrupted")
            return INTERRUPTED
        except FAILURES as error:
            _tell(f"error: {_one_line(error)}")
            return 1


def _separate_all(options: Options) -> int:
    """Check all that can be checked without the model, load it, separate song by song, and return the exit status."""
    options.bit_depth = options.bit_depth or DEPTHS[options.format]
    if (options.format, options.bit_depth) not in SUBTYPES:
        remedy = "leave it out" if DEPTHS[options.format] is None else "use 16 or 24"
        raise UsageError(f"--format {options.format} has no --bit-depth {options.bit_depth}: {remedy}")
    if options.quality is not None and DEPTHS[options.format] is not None:
        raise UsageError(f"--format {options.format} keeps all of the sound and has no --quality: leave it out")
    device = _device(options.device)
    configuration = _configuration(options)
    settings = _settings(options, configuration)
    stems = _stem_indices(options, settings.names)
    options.mixtures = _found(options)
    _check_folder_names(options)
    names: Sequence[str] = options.stems or settings.names
    _check_stem_names(options, names)
    if options.output.is_dir():
        finish_leftovers(options.output)
    if options.skip_existing and names:
        waiting = [path for path in options.mixtures if not all(map(Path.exists, _files(options, path, names)))]
        if not waiting:
            return 0
        options.mixtures = waiting

    mixtures = _those_that_succeed(options.mixtures, probe_audio)
    options.kept = identities(options.mixtures)
    mixtures = _those_that_succeed(mixtures, lambda path: _check_outputs(options, path, names))
    if not mixtures:
        return 1
    with _output_folder(options.output):
        model = from_checkpoint(
            options.checkpoint, options.configuration, upstream=options.upstream, device=device, stems=stems
        )
        names = _stem_names(options, settings.names, model.num_stems)
        separated = _those_that_succeed(mixtures, lambda path: _separate_one(options, settings, model, names, path))
    return 0 if len(separated) == len(options.mixtures) else 1


def _separate_one(
    options: Options, settings: Settings, model: BandSplitRotator, names: Sequence[str], path: Path
) -> None:
    """Separate one song and write its stems, block by block: no song is ever in memory as a whole."""
    _check_outputs(options, path, names)
    properties = probe_audio(path)
    on_terminal = sys.stderr is not None and sys.stderr.isatty() and not options.quiet
    if on_terminal:
        say(path, sys.stderr)
    level = _level(_resampled(path, properties, settings.sample_rate)) if settings.normalize else None
    rest = _Rest()
    stems = separate_stream(
        model,
        (
            block if level is None else (block - level.mean) / level.deviation
            for block in _resampled(path, properties, settings.sample_rate, rest)
        ),
        length=math.ceil(properties.length * settings.sample_rate / properties.sample_rate),
        dtype=DTYPES[options.dtype],
        progress=on_terminal,
        tta=options.tta,
        **settings.sizes,
    )
    written = _names_written(options, names)
    paths = dict(zip(written, _files(options, path, names), strict=True))
    encoding = Encoding(options.format, options.bit_depth, options.quality)
    with writing_together(
        options.output, paths, properties.sample_rate, encoding, overwrite=options.overwrite
    ) as folder:
        files = {name: folder.open(name, properties.channels, properties.length) for name in written}
        for converted in _converted(stems, settings.sample_rate, properties, rest):
            if level is not None:
                converted.mul_(level.deviation).add_(level.mean)
            mixture = rest.take(converted.shape[-1])
            for name, stem in zip(names, converted, strict=True):
                files[name].write(stem)
                mixture -= stem
            if options.residual:
                files[RESIDUAL].write(mixture)
        for name, file in files.items():
            if file.clipped:
                _tell(
                    f"warning: {file.clipped} values of {paths[name]} were beyond full scale and are cut off: "
                    "--format wav --bit-depth 32 keeps them"
                )
    if not options.quiet:
        for name in written:
            say(paths[name], sys.stdout)


class _Rest:
    """The part of a mixture whose stems are still to come, `(s, t)`."""

    def __init__(self) -> None:
        self.length = 0
        self._blocks: deque[Tensor] = deque()

    def append(self, block: Tensor) -> None:
        self.length += block.shape[-1]
        self._blocks.append(block)

    def take(self, count: int) -> Tensor:
        """Return the next samples, which may be changed."""
        taken: list[Tensor] = []
        self.length -= count
        while count:
            block = self._blocks.popleft()
            if block.shape[-1] > count:
                self._blocks.appendleft(block[:, count:])
            taken.append(block[:, :count])
            count -= taken[-1].shape[-1]
        return torch.cat(taken, dim=-1)


def _resampled(
    path: Path, properties: AudioProperties, sample_rate: int, rest: _Rest | None = None
) -> Generator[Tensor]:
    """Read a song block by block at another sample rate; what is read goes to `rest` as well."""
    convert = Resampler(properties.sample_rate, sample_rate)
    for block in read_blocks(path):
        if rest is not None:
            rest.append(block)
        yield convert(block)
    yield convert(torch.zeros(properties.channels, 0), last=True)


def _converted(
    stems: Iterable[Tensor], sample_rate: int, properties: AudioProperties, rest: _Rest
) -> Generator[Tensor]:
    """Give stems `(n, s, t)` the sample rate, the channels and the length of their mixture."""
    converters: list[Resampler] = []
    for block in stems:
        if properties.channels == 1:
            block = block.mean(dim=1, keepdim=True)  # A stereo model returns two channels for mono.
        converters = converters or [Resampler(sample_rate, properties.sample_rate) for _ in block]
        pieces = torch.stack([convert(stem) for convert, stem in zip(converters, block, strict=True)])
        pieces = pieces[..., : rest.length]
        if pieces.shape[-1]:
            yield pieces
    if sample_rate != properties.sample_rate:
        nothing = torch.zeros(properties.channels, 0)
        pieces = torch.stack([convert(nothing, last=True) for convert in converters])[..., : rest.length]
        if pieces.shape[-1]:
            yield pieces
    if rest.length:
        yield torch.zeros(len(converters), properties.channels, rest.length)


class _Level(NamedTuple):
    mean: float
    deviation: float


def _level(blocks: Iterable[Tensor]) -> _Level | None:
    """Return mean and standard deviation of the mono mix of a song, or None for silence."""
    count, mean, squares = 0, 0.0, 0.0
    for block in blocks:
        mono = block.double().mean(dim=0)
        if not len(mono):
            continue
        # Means and squares of two parts make those of both.
        step = float(mono.mean()) - mean
        share = len(mono) / (count + len(mono))
        squares += float((mono - mono.mean()).square().sum()) + step * step * count * share
        mean += step * share
        count += len(mono)
    level = _Level(mean, math.sqrt(squares / max(1, count)))
    return level if level.deviation > 1e-8 else None


def _configuration(options: Options) -> Mapping[str, Any]:
    """Return the configuration: of the file, or of the catalogue, or within the checkpoint, or nothing.

    A checkpoint that is a name is fetched, and its file takes the place of the name.
    """
    if catalogue.is_remote(str(options.checkpoint)):
        path, beside = catalogue.fetch(str(options.checkpoint))
        options.checkpoint = path
        options.configuration = options.configuration or beside
    with options.checkpoint.open("rb"):
        pass
    if options.configuration is not None:
        return load_configuration(options.configuration)
    if entry := catalogue.recognise(options.checkpoint):
        return entry.configuration
    # What `save_checkpoint` writes is a zip archive; on the meta device none of its tensors is read.
    content = read_file(options.checkpoint, "meta") if zipfile.is_zipfile(options.checkpoint) else None
    if not isinstance(content, Mapping):
        return {}
    configuration = cast("Mapping[str, object]", content).get("configuration")
    return cast("Mapping[str, Any]", configuration) if isinstance(configuration, Mapping) else {}


def _settings(options: Options, configuration: Mapping[str, Any]) -> Settings:
    """Take from the configuration what the command line leaves open."""
    audio, inference, training, model = (
        _section(configuration, name) for name in ("audio", "inference", "training", "model")
    )
    sizes = {
        "chunk_size": options.chunk_size or _size(inference, "chunk_size") or _size(audio, "chunk_size"),
        "num_overlap": options.num_overlap or _size(inference, "num_overlap"),
        "batch_size": options.batch_size or _size(inference, "batch_size"),
    }
    sample_rate = _size(audio, "sample_rate") or _size(model, "sample_rate") or 44100
    num_stems = _size(model, "num_stems") or 1
    target, instruments = training.get("target_instrument"), training.get("instruments")
    names: list[str] = []
    if target and num_stems == 1:
        names = [_file_name(target)]
    elif isinstance(instruments, Sequence) and len(cast("Sequence[object]", instruments)) == num_stems:
        names = [_file_name(name) for name in cast("Sequence[object]", instruments)]
    normalize: object = inference.get("normalize") or False
    if not isinstance(normalize, bool):
        raise CheckpointError(f"normalize in the configuration must be true or false, but is {normalize!r}")
    sizes = {name: size for name, size in sizes.items() if size is not None}
    return Settings(sample_rate, sizes, names, normalize)


def _section(configuration: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section: object = configuration.get(name) or {}
    if not isinstance(section, Mapping):
        raise CheckpointError(f"the section {name} of the configuration must be a mapping, but is {section!r}")
    return cast("Mapping[str, Any]", section)


def _size(section: Mapping[str, Any], name: str) -> int | None:
    size: object = section.get(name)
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        return size
    raise CheckpointError(f"{name} in the configuration must be an integer of at least 1, but is {size!r}")


def _file_name(name: object) -> str:
    """Return the name of a stem without what would lead out of the folder or what some systems do not take."""
    return re.sub(r'[\x00-\x1f\\/:*?"<>|]', "_", str(name)).strip(". ") or "_"


def _stem_indices(options: Options, known: Sequence[str]) -> list[int] | None:
    """Return the numbers of the stems that were asked for; None stands for all."""
    if options.residual and RESIDUAL in (options.stems or known):
        raise UsageError(f"--residual would overwrite the stem {RESIDUAL} of the model: leave it out")
    if options.stems is None:
        return None
    if len(set(options.stems)) < len(options.stems):
        raise UsageError(f"--stems {','.join(options.stems)} names a stem twice: name each once")
    if known:
        unknown = [name for name in options.stems if name not in known]
        if unknown:
            raise UsageError(f"--stems: the model has no stem {', '.join(unknown)}, but {', '.join(known)}")
        return [known.index(name) for name in options.stems]
    numbers = [re.fullmatch(r"stem_([1-9]\d*)", name) for name in options.stems]
    if not all(numbers):
        raise UsageError(
            f"--stems {','.join(options.stems)}: no configuration names the stems of this checkpoint. "
            "Pass --configuration, or call them stem_1, stem_2, ..."
        )
    return [int(number[1]) - 1 for number in numbers if number]


def _stem_names(options: Options, known: Sequence[str], num_stems: int) -> Sequence[str]:
    """Return the names of the stems that the model has; numbers where the configuration names none or others."""
    names = options.stems or known
    if len(names) == num_stems:
        return names
    if names:
        _tell(
            f"warning: the configuration names {', '.join(names)}, but the model has {num_stems} stems: I number them"
        )
    return [f"stem_{number}" for number in range(1, num_stems + 1)]


def _names_written(options: Options, names: Sequence[str]) -> list[str]:
    return [*names, RESIDUAL] if options.residual else [*names]


def _folder(options: Options, path: Path) -> Path:
    """Return the folder of a song's stems, which is below the output folder whatever the song is called."""
    name = path.stem if path.stem.strip(". ") else "_"
    return options.output / options.folders.get(path, Path()) / name


def _found(options: Options) -> list[Path]:
    """Return the songs that the arguments name: files, each once, and all audio files below folders."""
    found: dict[Path, None] = {}
    seen: set[Path] = set()
    for given in options.mixtures:
        below = sorted(path for path in given.rglob("*") if _is_audio(path)) if given.is_dir() else [given]
        if not below:
            raise UsageError(f"{given} is a folder without audio files: pass files, or another folder")
        for path in below:
            if (whole := path.resolve()) in seen:
                continue
            seen.add(whole)
            found[path] = None
            if given.is_dir():
                options.folders[path] = path.parent.relative_to(given)
    return list(found)


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES and path.is_file() and not path.name.startswith(".")


def _alike(name: object) -> str:
    """Return what names have in common that some file systems take for one."""
    return unicodedata.normalize("NFC", str(name)).casefold()


def _check_folder_names(options: Options) -> None:
    """Raise if two songs would be written to the same folder."""
    seen: dict[str, Path] = {}
    for path in options.mixtures:
        folder = _folder(options, path)
        other = seen.setdefault(_alike(folder), path)
        if other is not path:
            raise UsageError(
                f"{other} and {path} would both be written to {folder}: "
                "separate them in two calls with different --output"
            )


def _check_stem_names(options: Options, names: Sequence[str]) -> None:
    """Raise if two stems of a song would be one file."""
    seen: set[str] = set()
    for name in _names_written(options, names):
        if _alike(name) in seen:
            raise UsageError(
                f"two stems would be written as {name}.{options.format}: give the stems of the configuration "
                "different names, or ask for one of them with --stems"
            )
        seen.add(_alike(name))


def _check_outputs(options: Options, path: Path, names: Sequence[str]) -> None:
    """Raise if the folder of this song cannot be one, or if a stem exists and may not be replaced."""
    files = _files(options, path, names)
    for file in files:
        for part in file.relative_to(options.output).parts:
            if len(os.fsencode(part)) > LONGEST_NAME:
                raise ValueError(
                    f"{part} is a name of {len(os.fsencode(part))} bytes, and file systems take {LONGEST_NAME}: "
                    "rename the song, or the stems in the configuration"
                )
    check_targets(files, overwrite=options.overwrite, kept=options.kept)


def _files(options: Options, path: Path, names: Sequence[str]) -> list[Path]:
    return [_folder(options, path) / f"{name}.{options.format}" for name in _names_written(options, names)]


@contextmanager
def _output_folder(folder: Path) -> Generator[None]:
    """Make the folder, find out whether it can be written, and remove it again if nothing came into it."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    try:
        yield
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()


def _those_that_succeed(paths: Iterable[Path], action: Callable[[Path], object]) -> list[Path]:
    """Do the action for each path, say in one line what failed, and return the other paths."""
    succeeded: list[Path] = []
    waiting = list(paths)
    for number, path in enumerate(waiting, start=1):
        try:
            action(path)
        except FAILURES as error:
            if isinstance(error, WritingError) and error.is_for_all:
                left = len(waiting) - number
                _tell(f"error: {_one_line(error)}{f': {left} more are not separated' if left else ''}")
                break
            text = _one_line(error)
            _tell(f"error: {text if str(path) in text else f'{path}: {text}'}")
        else:
            succeeded.append(path)
    return succeeded


def _device(name: str) -> torch.device:
    """Return the device of this name, the fastest kind there is for `auto`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"--device {name} cannot be used here: {_one_line(error)}") from error
    if device.type == "meta":
        raise UsageError("--device meta does not compute: use cpu, cuda or mps")
    return device


def _one_line(message: object) -> str:
    if isinstance(message, OSError) and message.filename is not None and message.strerror:
        return f"{message.filename}: {message.strerror}"
    return " ".join(str(message).split()) or type(message).__name__


def _tell(text: str) -> None:
    say(f"{PROGRAM}: {text}", sys.stderr)


@contextmanager
def _one_line_warnings() -> Generator[None]:
    """Show warnings without the line of code that gave them."""
    with warnings.catch_warnings():

        def show(message: object, *_position: object, **_stream: object) -> None:
            _tell(f"warning: {_one_line(message)}")

        warnings.showwarning = show
        yield


def run() -> NoReturn:
    """Be the program of this process."""
    with ending_on_signals():
        sys.exit(main())


if __name__ == "__main__":
    run()
