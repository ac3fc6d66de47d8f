"""Combine files of the same stem, from several models, into one."""

from __future__ import annotations

import argparse
from pathlib import Path

from hunterFormsBS.choices import ENSEMBLES, FORMATS, Format
from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.program.values import checked, weights
from hunterFormsBS.songs.encodings import Encoding, quality_or_bit_rate

EXAMPLES = """\
  hunterforms combine A/vocals.wav B/vocals.wav --ensemble avg_fft --output vocals.wav
      the mean of the spectra of two files, as ensemble.py of Music-Source-Separation-Training makes it

  hunterforms combine A/vocals.wav B/vocals.wav C/vocals.wav --weights 2,1,1 --output vocals.flac
      a mean of samples in which the first file counts twice
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE", help="with the same sample rate, channels and length")
    add("--output", type=Path, metavar="FILE", help=f"{', '.join(f'.{one}' for one in FORMATS)}")
    add(
        "--ensemble",
        choices=ENSEMBLES,
        default="avg_wave",
        help="mean, median, minimum or maximum, of samples or of spectra (default: avg_wave)",
    )
    add("--weights", type=weights, metavar="NUMBERS", help="of the files in avg_wave and avg_fft, such as 2,1,1")
    add("--bit-depth", type=int, choices=(16, 24, 32), help="32, the default for wav, is floating point")
    add(
        "--quality",
        type=checked(quality_or_bit_rate),
        metavar="X",
        help="of what is lossy: from 0 to 10, or a bit rate such as 320k",
    )
    add("--overwrite", action="store_true", help="replace a file that exists")
    add("--quiet", action="store_true", help="do not print the name of the file")


def run(options: argparse.Namespace, console: Console) -> int:
    """Combine the files."""
    if len(options.files) < 2 or options.output is None:
        raise UsageError("at least two files are required, and --output FILE")
    encoding = _encoding(options)
    if options.weights is not None:
        if len(options.weights) != len(options.files):
            raise UsageError(f"{len(options.weights)} --weights for {len(options.files)} files: pass one for each")
        if not options.ensemble.startswith("avg"):
            raise UsageError(f"--ensemble {options.ensemble} has no --weights: use avg_wave or avg_fft")

    from hunterFormsBS.songs.combining import combine_files

    written = combine_files(
        options.files,
        options.output,
        options.ensemble,
        options.weights,
        encoding=encoding,
        existing="replace" if options.overwrite else "refuse",
    )
    if written.clipped:
        console.warn(
            f"{written.clipped} values of {written.path} were beyond full scale and are cut off: .wav with "
            "--bit-depth 32 keeps them"
        )
    console.show(written.path)
    return 0


def _encoding(options: argparse.Namespace) -> Encoding:
    suffix = options.output.suffix.removeprefix(".").lower()
    kind: Format | None = next((one for one in FORMATS if one == suffix), None)
    if kind is None:
        listed = ", ".join(f".{one}" for one in FORMATS)
        raise UsageError(f"--output {options.output} must end with one of {listed}")
    try:
        return Encoding.of(kind, options.bit_depth, options.quality)
    except ValueError as error:
        raise UsageError(str(error)) from error
