"""Separate songs into stems. The default command."""

from __future__ import annotations

import argparse
import errno
import glob
import os
import re
from pathlib import Path

from hunterFormsBS.checkpoint.facts import presets
from hunterFormsBS.choices import (
    BATCH_SIZE,
    BLENDS,
    CHUNK_SIZE,
    DTYPES_COMPUTED,
    ENSEMBLES,
    KINDS,
    NUM_OVERLAP,
    SHIFTS,
    SOUNDING,
)
from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.limits import HIGHEST_RATE, LOWEST_RATE
from hunterFormsBS.printable import short_repr
from hunterFormsBS.program.commands import models
from hunterFormsBS.program.parsing import add_advanced_group
from hunterFormsBS.program.values import add_upstream, checked, integer, names, number, weights
from hunterFormsBS.songs.encodings import quality_or_bit_rate
from hunterFormsBS.songs.names import FIELDS, TEMPLATE, check_template, safe_name
from hunterFormsBS.songs.parts import PREVIEW, seconds

EXAMPLES = """\
  hunterforms song.flac
      asks what you want to hear, fetches a model for it, and writes separated/song/vocals.wav and so on

  hunterforms song.flac --checkpoint model.ckpt --configuration model.yaml --output separated
      writes separated/song/vocals.wav and so on, one file for each stem of the model

  hunterforms song.flac --preset vocal_balanced --output separated
      fetches two models of vocals, and writes what they make of the song together; `hunterforms presets` lists others

  hunterforms album/ --checkpoint model.ckpt --output separated --stems vocals --residual instrumental
      writes the vocals of every song below the folder, and everything else in it as instrumental.wav

  hunterforms song.mp3 --checkpoint model.ckpt --output separated --num-overlap 4 --dtype bfloat16
      more overlap for smoother results, at twice the time of --num-overlap 2; bfloat16 saves time on a GPU

  hunterforms album/ --recipe dry-lead --output separated
      lead vocals without reverberation: three models in one run; `hunterforms recipe list` shows other recipes

  hunterforms song.flac --checkpoint model.ckpt --output separated --start 1:20 --duration 30
      half a minute of the song, the same samples as in the stems of all of it; --preview takes the loudest half minute

  torchrun --nproc-per-node 8 -m hunterFormsBS corpus/ --checkpoint model.ckpt --output separated --skip-existing
      shares the songs out among eight GPUs; the same command again does what is left

The stems have the sample rate, the length and the number of channels of the mixture, whatever the model works in.
The stems of a song appear together, once all of them are complete. Stems that exist already are not replaced
unless --overwrite is given, and their song is not separated.
"""

RESIDUAL = "residual"
OUTPUT = Path("separated")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, common ones first."""
    parser.usage = "%(prog)s MIXTURE ... [--checkpoint FILE | --preset NAME | --recipe NAME] [--output DIR] [options]"
    add = parser.add_argument
    add(
        "mixtures",
        nargs="*",
        type=Path,
        metavar="MIXTURE",
        help="audio file, folder, pattern such as 'in/*.wav', named pipe, or - for standard input",
    )
    add(
        "--checkpoint",
        "--model",
        dest="checkpoint",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="weights: a file, a name that `hunterforms models` prints, or hub:OWNER/REPOSITORY/FILE; several times "
        "for an ensemble",
    )
    add(
        "--preset",
        choices=tuple(presets()),
        metavar="NAME",
        help="several checkpoints for one purpose, with their ensemble: see `hunterforms presets`",
    )
    add(
        "--recipe",
        metavar="NAME|FILE",
        help=(
            "several models in one run, instead of --checkpoint: a name that `hunterforms recipe list` "
            "prints, or a YAML file"
        ),
    )
    add(
        "--output",
        type=Path,
        default=OUTPUT,
        metavar="DIR",
        help=f"folder for the results, DIR/SONG/STEM.wav; it is made (default: {OUTPUT})",
    )
    add(
        "--configuration",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="the YAML or JSON file that came with the checkpoint; repeat it in the order of the checkpoints",
    )
    add(
        "--num-overlap",
        type=number(1),
        metavar="X",
        help=f"how many chunks cover each sample, such as 4 or 1.25 (default: as configured, or {NUM_OVERLAP})",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps, ... (default: a GPU if there is one)")
    _add_written(parser)
    _add_models(parser)
    _add_read(parser)
    _add_files(parser)
    _add_computation(parser)
    add = add_advanced_group(parser, "as other commands").add_argument
    add("--info", type=Path, metavar="FILE", help="print what a checkpoint is: hunterforms info FILE")
    add("--list-models", action="store_true", help="print the checkpoints that have names: hunterforms models")


def run(options: argparse.Namespace, console: Console) -> int:
    """Separate songs, or run the command that an option stands for."""
    if options.list_models:
        return models.show(models.Selection(), console)
    if options.info is not None:
        if options.mixtures or options.checkpoint:
            raise UsageError("--info FILE takes the checkpoint itself, and no songs: separate them in another call")
        from hunterFormsBS.songs.information import show_information

        configuration = next(iter(options.configuration), None)
        return show_information(options.info, console, configuration=configuration, upstream=options.upstream)
    if not options.mixtures:
        raise UsageError("the following arguments are required: MIXTURE, the songs to separate")
    if not (options.checkpoint or options.preset or options.recipe):
        if not any(map(_may_exist, options.mixtures)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(options.mixtures[0]))
        from hunterFormsBS.program.purposes import ask_purpose

        options = argparse.Namespace(**{**vars(options), **ask_purpose(console)})
    options = _with_ensemble(options)
    from hunterFormsBS.songs.batch import separate_all
    from hunterFormsBS.songs.options import Options

    given_options = Options(**vars(options))
    if options.recipe is None:
        if options.one_model_at_a_time:
            raise UsageError("--one-model-at-a-time works only with --recipe: leave it out")
        return separate_all(given_options, console)
    from hunterFormsBS.recipes.commandLine import plan_of_options

    return separate_all(given_options, console, plan_of_options)


def _may_exist(song: Path) -> bool:
    """Return whether a song exists, or is standard input or a pattern."""
    return song == Path("-") or os.path.lexists(song) or glob.has_magic(str(song))


def _with_ensemble(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options with the checkpoints and the ensemble of a preset."""
    if options.preset is None:
        return argparse.Namespace(**{**vars(options), "ensemble": options.ensemble or "avg_wave"})
    instead = ("checkpoint", "configuration", "ensemble", "weights", "upstream", "lora")
    given = [f"--{name}" for name in instead if getattr(options, name)]
    if given:
        raise UsageError(
            f"--preset {options.preset} says which checkpoints, and how they are combined: leave out "
            f"{' and '.join(given)}, or name the checkpoints that `hunterforms presets` lists yourself"
        )
    preset = presets()[options.preset]
    chosen = {
        "checkpoint": [Path(name) for name in preset.checkpoints],
        "ensemble": preset.ensemble,
        "stems": options.stems or list(preset.stems),
    }
    return argparse.Namespace(**{**vars(options), **chosen})


def _add_written(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is written").add_argument
    add(
        "--stems",
        type=names,
        metavar="NAMES",
        help="only these stems, such as vocals,drums; the others are not computed",
    )
    add(
        "--residual",
        nargs="?",
        const=RESIDUAL,
        type=_residual,
        metavar="NAME",
        help=f"write the mixture minus the stems, as {RESIDUAL} or under this name",
    )
    add(
        "--also-rest",
        nargs="?",
        const="",
        metavar="STEM",
        help="also write the mixture minus this stem (default: vocals, or the first), as instrumental or no_STEM",
    )
    add(
        "--format",
        choices=KINDS,
        default="wav",
        help=(
            "file format (default: wav); ogg is Vorbis; m4a is AAC or, with --bit-depth, ALAC; stem.mp4 "
            "is one file for DJ programs, with the mixture and up to four stems"
        ),
    )
    add("--overwrite", action="store_true", help="replace stems that exist")
    add(
        "--skip-existing",
        action="store_true",
        help="skip songs whose stems all exist; for others write only missing stems",
    )
    add("--quiet", action="store_true", help="print neither progress nor the names of the files")


def _add_models(parser: argparse.ArgumentParser) -> None:
    group = add_advanced_group(parser, "checkpoints")
    add = group.add_argument
    add_upstream(group)
    add(
        "--lora",
        type=Path,
        metavar="PATH",
        help="low-rank adapters for the checkpoint: the folder that peft saved, or MSST's file of loralib",
    )
    add(
        "--ensemble",
        choices=ENSEMBLES,
        help="how to combine the stems of several checkpoints, by samples or by spectra (default: avg_wave)",
    )
    add(
        "--weights",
        type=weights,
        metavar="NUMBERS",
        help="weights of the checkpoints for avg_wave and avg_fft, such as 2,1,1",
    )


def _add_read(parser: argparse.ArgumentParser) -> None:
    add = add_advanced_group(parser, "what is read").add_argument
    add(
        "--audio-stream",
        type=integer(),
        metavar="N",
        help="audio stream of a film or a .stem.mp4, counted from 1 (default: 1)",
    )
    add("--downmix", action="store_true", help="mix more than two channels down to stereo, as FFmpeg does")
    time = checked(seconds)
    add("--start", type=time, metavar="TIME", help="start of the part to separate, seconds or m:ss")
    add("--end", type=time, metavar="TIME", help="end of the part")
    add("--duration", type=time, metavar="TIME", help="length of the part, instead of --end")
    add("--preview", action="store_true", help=f"separate {PREVIEW:.0f} seconds of the loudest part of each song")


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = add_advanced_group(parser, "files").add_argument
    add(
        "--name-template",
        type=checked(check_template),
        default=TEMPLATE,
        metavar="TEXT",
        help=f"file names below DIR, with {', '.join(f'{{{field}}}' for field in FIELDS)} (default: {TEMPLATE})",
    )
    add(
        "--bit-depth",
        type=int,
        choices=(16, 24, 32),
        help="32, the default for wav, is floating point and never clips; the default for flac is 24",
    )
    add(
        "--quality",
        type=checked(quality_or_bit_rate),
        metavar="X",
        help="of lossy formats: from 0, smallest files, to 10, best sound; or a bit rate such as 320k",
    )
    add(
        "--sample-rate",
        type=integer(LOWEST_RATE, HIGHEST_RATE),
        metavar="HZ",
        help="sample rate of the files (default: the song's)",
    )
    add(
        "--normalize",
        type=_normalize,
        metavar="peak=DB",
        help=(
            "multiply all stems of a song by one factor that sets the highest peak (peak=-1) or the "
            "loudness of the loudest stem (lufs=-14)"
        ),
    )
    add(
        "--clip",
        choices=("cut", "scale"),
        default="cut",
        help=(
            "how to treat values beyond full scale, except in floating point: cut them off with a "
            "warning, or scale all stems of the song by one factor (default: cut)"
        ),
    )
    add("--spectrograms", action="store_true", help="draw a picture of each file, STEM.png")
    add(
        "--activity",
        type=number(-200, 0),
        default=SOUNDING,
        metavar="DB",
        help=f"level above which a stem sounds, for its times in --json ({SOUNDING:g})",
    )
    add("--json", action="store_true", help="print one line of JSON for each song instead of file names")


def _add_computation(parser: argparse.ArgumentParser) -> None:
    add = add_advanced_group(
        parser,
        "how it is computed",
        "The configuration sets the defaults of the first two and of --num-overlap, if it states them.",
    ).add_argument
    add("--chunk-size", type=integer(), metavar="N", help=f"samples that the model sees at a time ({CHUNK_SIZE})")
    add("--batch-size", type=integer(), metavar="N", help=f"chunks computed together ({BATCH_SIZE})")
    add(
        "--tta",
        action="store_true",
        help="average with inverted polarity and swapped channels: three times as long",
    )
    add(
        "--shifts",
        type=integer(),
        default=SHIFTS,
        metavar="N",
        help=f"average over N passes, each rotated in time: N times as long ({SHIFTS})",
    )
    add(
        "--blend",
        choices=BLENDS,
        default="smooth",
        help="windows, edges and borders of chunks; those of another program give the same stems (default: smooth)",
    )
    add(
        "--dtype",
        choices=DTYPES_COMPUTED,
        default="float32",
        help="precision of the computation; int8 is for a CPU (default: float32)",
    )
    add(
        "--one-model-at-a-time",
        action="store_true",
        help=(
            "for a recipe, if the device cannot hold all models: load one after another, and keep stems "
            "in temporary files in DIR"
        ),
    )


def _residual(text: str) -> str:
    if Path(text).exists() or re.search(r"[/\\]", text):
        raise argparse.ArgumentTypeError(f"must be a name, but {text!r} is a file: put it before --residual")
    return safe_name(text)


def _normalize(text: str) -> dict[str, float]:
    kind, _, value = text.partition("=")
    if kind not in ("peak", "lufs"):
        raise argparse.ArgumentTypeError(f"must be peak=DB or lufs=LUFS, such as peak=-1, but is {short_repr(text)}")
    return {kind: number(-70, 0)(value)}
