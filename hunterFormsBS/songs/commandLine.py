"""The command line of `python -m hunterFormsBS`: its options and their explanation."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

import torch

from hunterFormsBS.catalogue import entries
from hunterFormsBS.checkpoint.families import Upstream
from hunterFormsBS.ensemble import ENSEMBLES, Ensemble
from hunterFormsBS.limits import HIGHEST_RATE, LOWEST_RATE
from hunterFormsBS.parametersSeparation import (
    BLENDS,
    LARGEST,
    Blend,
    KeywordsSeparation,
    ParametersSeparation,
)
from hunterFormsBS.printable import say, short_repr
from hunterFormsBS.songs.encodings import KINDS, Format, quality_or_bit_rate
from hunterFormsBS.songs.levels import THRESHOLD
from hunterFormsBS.songs.names import FIELDS, TEMPLATE, check_template, safe_name
from hunterFormsBS.songs.parts import PREVIEW, Part, clock, seconds

__all__ = ["DTYPES", "PROGRAM", "Options", "UsageError", "parse", "parser"]

PROGRAM = "hunterFormsBS"
RESIDUAL = "residual"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

EPILOG = """\
examples:
  python -m hunterFormsBS song.flac --checkpoint model.ckpt --configuration model.yaml --output separated
      writes separated/song/vocals.wav and so on, one file for each stem of the model

  python -m hunterFormsBS album/ --checkpoint model.ckpt --output separated --stems vocals --residual instrumental
      writes the vocals of every song below the folder, and everything else in it as instrumental.wav

  python -m hunterFormsBS song.mp3 --checkpoint model.ckpt --output separated --num-overlap 4 --dtype bfloat16
      more overlap for smoother results, at twice the time of --num-overlap 2; bfloat16 saves time on a GPU

  python -m hunterFormsBS song.flac --checkpoint model.ckpt --output separated --start 1:20 --duration 30
      half a minute of the song, the same samples as in the stems of all of it; --preview takes the loudest half minute

  torchrun --nproc-per-node 8 -m hunterFormsBS corpus/ --checkpoint model.ckpt --output separated --skip-existing
      shares the songs out among eight GPUs; the same command again does what is left

The stems have the sample rate, the length and the number of channels of the mixture, whatever the model works in.
The stems of a song appear together, once all of them are complete. Stems that exist already are not replaced
unless --overwrite is given, and their song is not separated.

exit status: 0 all songs are separated; 1 something failed, and each failure is named in one line, while the other
songs were separated; 2 the command line cannot be used; 130 interrupted with Ctrl-C.
"""


class UsageError(Exception):
    """A command line that cannot be used."""


class Options(argparse.Namespace):
    """The command line."""

    mixtures: list[Path]
    info: Path | None
    checkpoint: list[Path]
    configuration: list[Path]
    upstream: Upstream | None
    lora: Path | None
    ensemble: Ensemble
    weights: list[float] | None
    output: Path
    audio_stream: int | None
    downmix: bool
    start: float | None
    end: float | None
    duration: float | None
    preview: bool
    stems: list[str] | None
    residual: str | None
    name_template: str
    format: Format
    bit_depth: int | None
    quality: tuple[float | None, int | None] | None
    clip: Literal["cut", "scale"]
    also_rest: str | None
    sample_rate: int | None
    normalize: dict[str, float] | None
    activity: float
    spectrograms: bool
    overwrite: bool
    skip_existing: bool
    json: bool
    quiet: bool
    chunk_size: int | None
    num_overlap: float | None
    batch_size: int | None
    tta: bool
    shifts: int
    blend: Blend
    device: str
    dtype: str

    def separation(self) -> KeywordsSeparation:
        """Return what it says of how to separate, but for the device, where models are loaded, and for the part."""
        apart = {"device", "start", "end", "duration"}
        given = {name: getattr(self, name) for name in KeywordsSeparation.__annotations__ if name not in apart}
        given["dtype"] = DTYPES[self.dtype]
        return cast("KeywordsSeparation", {name: value for name, value in given.items() if value is not None})

    def part(self) -> Part | None:
        """Return which part of songs is separated, None for a preview of each.

        Raises
        ------
        UsageError
            If the options of parts contradict each other.
        """
        ends = [name for name in ("end", "duration", "preview") if getattr(self, name) not in (None, False)]
        if len(ends) > 1:
            raise UsageError(f"{' and '.join(f'--{name}' for name in ends)} exclude each other: leave one out")
        start = self.start or 0.0
        if self.preview:
            if self.start is not None:
                raise UsageError("--preview finds its beginning: leave out --start, or pass it with --duration 30")
            return None
        end = start + self.duration if self.duration is not None else math.inf if self.end is None else self.end
        if end <= start:
            raise UsageError(f"the part would end at {clock(end)} and begin at {clock(start)}: end it later")
        return Part(start, end)


def parse(argv: Sequence[str] | None = None) -> tuple[Options, Callable[[str], NoReturn]]:
    """Return the options, and what ends the program with status 2 and a message.

    Parameters
    ----------
    argv : Sequence[str] | None = None
        Arguments without the program's name. `None`: those of the process.

    Raises
    ------
    SystemExit
        With 2 if the arguments cannot be used, with 0 after `--help` and its like.
    """
    reader = parser()
    options = reader.parse_args(argv, Options())
    given = {"MIXTURE": options.mixtures, "--checkpoint": options.checkpoint, "--output": options.output}
    missing = [name for name, value in given.items() if not value]
    if missing and options.info is None:
        reader.error(f"the following arguments are required: {', '.join(missing)}")
    return options, reader.error


def _positive_integer(text: str) -> int:
    if re.fullmatch(r"[0-9]+", text) and len(text) < 100 and 1 <= int(text) <= LARGEST:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be an integer from 1 to {LARGEST}, but is {short_repr(text)}")


def _overlap(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, but is {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _quality(text: str) -> tuple[float | None, int | None]:
    try:
        return quality_or_bit_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _sample_rate(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) and LOWEST_RATE <= int(text) <= HIGHEST_RATE:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be an integer from {LOWEST_RATE} to {HIGHEST_RATE}, but is {text[:40]!r}")


def _decibels(text: str) -> float:
    if re.fullmatch(r"-?[0-9]{1,3}(\.[0-9]{0,9})?", text) and -200 <= float(text) <= 0:
        return float(text)
    raise argparse.ArgumentTypeError(f"must be decibels from -200 to 0, but is {text[:40]!r}")


def _normalize(text: str) -> dict[str, float]:
    kind, _, value = text.partition("=")
    if kind not in ("peak", "lufs"):
        raise argparse.ArgumentTypeError(f"must be peak=DB or lufs=LUFS, such as peak=-1, but is {text[:40]!r}")
    return {kind: _decibels(value)}


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names with commas between them, but is {text!r}")
    return names


def _residual(text: str) -> str:
    if Path(text).exists() or re.search(r"[/\\]", text):
        raise argparse.ArgumentTypeError(f"must be a name, but {text!r} is a file: put it before --residual")
    return safe_name(text)


def _template(text: str) -> str:
    try:
        return check_template(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _weights(text: str) -> list[float]:
    try:
        weights = [float(weight) for weight in text.split(",")]
    except ValueError:
        weights = [-1.0]
    if not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, but is {text!r}")
    return weights


class _ListModels(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_arguments: object) -> NoReturn:
        """Print names, stems and addresses, and exit."""
        for name, entry in entries().items():
            address = f"hub:{entry.repository}/{entry.file}" if entry.repository else "by hand"
            sys.stdout.write(f"{name}\t{','.join(entry.stems)}\t{address}\n")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message, with options that may be meant for unknown ones, and exit with status 2."""
        options = [option for action in self._actions for option in action.option_strings]
        unrecognized = message if message.startswith("unrecognized") else ""
        for unknown in [match[0] for match in re.finditer(r"--[a-zA-Z-]+", unrecognized)]:
            for near in difflib.get_close_matches(unknown, options, n=1, cutoff=0.7):
                message += f"; is {near} meant?"
        say(f"{PROGRAM}: error: {message} (--help explains the options)", sys.stderr)
        self.exit(2)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    reader = _Parser(
        prog=f"python -m {PROGRAM}",
        description="Separate songs into stems with a RoFormer checkpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = reader.add_argument
    add("--version", action="version", version=f"{PROGRAM} {version(PROGRAM)}")
    add("--list-models", action=_ListModels, nargs=0, help="print the checkpoints that have names, and exit")
    add(
        "--info",
        type=Path,
        metavar="FILE",
        help="print what a checkpoint is: family, arguments, stems, sample rate, what nothing determines; and exit",
    )
    add(
        "mixtures",
        nargs="*",
        type=Path,
        metavar="MIXTURE",
        help="audio file, folder of them, pattern such as 'in/*.wav', named pipe, or - for standard input",
    )
    add(
        "--checkpoint",
        "--model",
        dest="checkpoint",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="weights: a file, a name of --list-models, or hub:OWNER/REPOSITORY/FILE; several times for an ensemble",
    )
    add("--output", type=Path, metavar="DIR", help="folder for the results, DIR/SONG/STEM.wav; it is made")
    add(
        "--configuration",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="the YAML or JSON file that came with the checkpoint; several in the order of the checkpoints",
    )
    add(
        "--upstream",
        choices=get_args(Upstream),
        help="project whose convention the configuration follows (default: recognised from the checkpoint)",
    )
    add(
        "--lora",
        type=Path,
        metavar="PATH",
        help="low-rank adapters for the checkpoint: the folder that peft saved, or MSST's file of loralib",
    )

    group = reader.add_argument_group("what is read")
    add = group.add_argument
    add(
        "--audio-stream",
        type=_positive_integer,
        metavar="N",
        help="which audio of a film or of a .stem.mp4, counted from 1 (1)",
    )
    add("--downmix", action="store_true", help="mix more than two channels down to stereo, as FFmpeg does")
    add(
        "--start",
        type=_seconds,
        metavar="TIME",
        help="separate from here on: seconds or m:ss; what lies before is heard",
    )
    add("--end", type=_seconds, metavar="TIME", help="separate up to here")
    add("--duration", type=_seconds, metavar="TIME", help="how much to separate, in place of --end")
    add("--preview", action="store_true", help=f"separate {PREVIEW:.0f} seconds of the loudest part of each song")

    group = reader.add_argument_group("what is written")
    add = group.add_argument
    add("--stems", type=_names, metavar="NAMES", help="only these, such as vocals,drums; the others are not computed")
    add(
        "--residual",
        nargs="?",
        const=RESIDUAL,
        type=_residual,
        metavar="NAME",
        help=f"write the mixture minus the stems, as {RESIDUAL} or under this name",
    )
    add(
        "--name-template",
        type=_template,
        default=TEMPLATE,
        metavar="TEXT",
        help=f"names of files below DIR, with {', '.join(f'{{{field}}}' for field in FIELDS)} (default: {TEMPLATE})",
    )
    add(
        "--format",
        choices=KINDS,
        default="wav",
        help="kind of the files (default: wav); ogg is Vorbis, m4a is AAC or, with --bit-depth, ALAC; stem.mp4 is one "
        "file for DJ programs, with the mixture and up to four stems",
    )
    add(
        "--bit-depth",
        type=int,
        choices=(16, 24, 32),
        help="32, the default for wav, is floating point and never clips; the default for flac is 24",
    )
    add(
        "--quality",
        type=_quality,
        metavar="X",
        help="of what is lossy: from 0, the smallest files, to 10, the best sound; or a bit rate such as 320k",
    )
    add("--sample-rate", type=_sample_rate, metavar="HZ", help="of the files (default: that of the song)")
    add(
        "--clip",
        choices=("cut", "scale"),
        default="cut",
        help="what becomes of values beyond full scale, but in floating point: they are cut off with a warning, or all "
        "stems of the song lowered by one factor (default: cut)",
    )
    add(
        "--normalize",
        type=_normalize,
        metavar="peak=DB|lufs=LUFS",
        help="multiply all stems of a song by one factor, so that the highest has this peak, or the loudest this "
        "loudness, such as peak=-1 or lufs=-14",
    )
    add(
        "--also-rest",
        nargs="?",
        const="",
        metavar="STEM",
        help="write the mixture minus this stem as well (vocals, or the first): instrumental, or no_STEM",
    )
    add("--spectrograms", action="store_true", help="a picture of each file, STEM.png")
    add(
        "--activity",
        type=_decibels,
        default=THRESHOLD,
        metavar="DB",
        help=f"level above which --json says that a stem sounds ({THRESHOLD:g})",
    )
    add("--overwrite", action="store_true", help="replace stems that exist")
    add(
        "--skip-existing",
        action="store_true",
        help="leave out songs whose stems all exist, and write only what others lack",
    )
    add("--json", action="store_true", help="print one line of JSON for each song, and not the names of files")
    add("--quiet", action="store_true", help="no progress, and no list of the files written")

    group = reader.add_argument_group(
        "how it is computed", "The defaults of the first three are those of the configuration, where it states them."
    )
    add = group.add_argument
    usual = ParametersSeparation
    add(
        "--chunk-size",
        type=_positive_integer,
        metavar="N",
        help=f"samples that the model sees at a time ({usual.chunk_size})",
    )
    add(
        "--num-overlap",
        type=_overlap,
        metavar="X",
        help=f"how many chunks cover each sample, such as 4 or 1.25 ({usual.num_overlap})",
    )
    add(
        "--batch-size",
        type=_positive_integer,
        metavar="N",
        help=f"chunks that are computed together ({usual.batch_size})",
    )
    add(
        "--tta",
        action="store_true",
        help="average with the polarity inverted and the channels exchanged: three times as long",
    )
    add(
        "--shifts",
        type=_positive_integer,
        default=usual.shifts,
        metavar="N",
        help="average over N passes, each moved in time: N times as long (1)",
    )
    add(
        "--blend",
        choices=BLENDS,
        default=usual.blend,
        help="windows, edges and borders of chunks: msst for the same stems as its inference.py (default: smooth)",
    )
    add(
        "--ensemble",
        choices=ENSEMBLES,
        default="avg_wave",
        help="how the stems of several checkpoints become one: of samples or of spectra (default: avg_wave)",
    )
    add("--weights", type=_weights, metavar="NUMBERS", help="of the checkpoints in avg_wave and avg_fft, such as 2,1,1")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps, ... (default: a GPU if there is one)")
    add("--dtype", choices=tuple(DTYPES), default="float32", help="precision of the computation (default: float32)")
    return reader
