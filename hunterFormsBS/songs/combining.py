"""Files of one stem by several models or programs, combined into one file, in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from hunterFormsBS.ensemble import Ensemble, combine_streams
from hunterFormsBS.printable import printable
from hunterFormsBS.songs.encodings import Encoding
from hunterFormsBS.songs.reading import AudioFile, duration, probe_audio
from hunterFormsBS.songs.tags import read_tags, write_tags
from hunterFormsBS.songs.together import Existing, check_targets, identity
from hunterFormsBS.songs.writing import StemFile, writing_together

__all__ = ["combine_files"]


def combine_files(
    files: Sequence[Path],
    output: Path,
    kind: Ensemble = "avg_wave",
    weights: Sequence[float] | None = None,
    *,
    encoding: Encoding = Encoding(),  # noqa: B008  # it cannot change
    existing: Existing = "refuse",
) -> StemFile:
    """Combine files of the same stem into one, which gets the tags of the first.

    Parameters
    ----------
    files : Sequence[Path]
        Of one sample rate, as many channels and samples. Any number of them is read in step, so memory does not grow
        with their length.
    output : Path
        The file to write.
    kind, weights
        As in `hunterFormsBS.ensemble.combine`.
    existing : Existing, default "refuse"
        What becomes of a file of this name.

    Returns
    -------
    written : StemFile
        What is known of the file, for example how many values were cut off.

    Raises
    ------
    OSError, ValueError
        If a file cannot be read or written, or they differ in rate, channels or length.
    """
    inputs = [probe_audio(path) for path in files]
    for one in inputs:
        _check_alike(inputs[0], one)
    encoding.check(inputs[0].sample_rate, inputs[0].channels)
    if identity(output) in {identity(path) for path in files} - {None}:
        raise ValueError(f"{printable(output)} is one of the files to combine: pass another --output")
    check_targets(output.parent, [output], existing=existing)
    lengths = [0] * len(inputs)

    def counted(number: int) -> Iterator[Tensor]:
        for block in inputs[number].blocks():
            lengths[number] += block.shape[-1]
            yield block

    combined = combine_streams([counted(number) for number in range(len(inputs))], kind, weights)
    tags = read_tags(files[0])
    with writing_together(
        output.parent,
        {"combined": output},
        inputs[0].sample_rate,
        encoding,
        existing=existing,
        finish=lambda path: write_tags(tags, [path]),
    ) as folder:
        (file,) = folder.open(inputs[0].channels)
        for block in _while_equally_long(combined, inputs, lengths):
            file.write(block)
    return file


def _check_alike(first: AudioFile, other: AudioFile) -> None:
    for what, one, two in (
        ("samples a second", first.sample_rate, other.sample_rate),
        ("channel(s)", first.channels, other.channels),
    ):
        if one != two:
            raise ValueError(
                f"{first.name} has {one} {what}, but {other.name} {two}: convert one of them, for example with ffmpeg"
            )
    if first.exact and other.exact and first.stated != other.stated:
        raise _of_two_lengths(first, first.stated or 0, other, other.stated or 0)


def _while_equally_long(
    combined: Iterator[Tensor], inputs: Sequence[AudioFile], lengths: Sequence[int]
) -> Iterator[Tensor]:
    """Yield combined blocks; where a file ends before others, name them."""
    try:
        yield from combined
    except ValueError as error:
        shortest = min(range(len(inputs)), key=lengths.__getitem__)
        longest = max(range(len(inputs)), key=lengths.__getitem__)
        if lengths[shortest] == lengths[longest]:
            raise
        raise _of_two_lengths(inputs[shortest], lengths[shortest], inputs[longest], None) from error


def _of_two_lengths(one: AudioFile, length: int, other: AudioFile, more: int | None) -> ValueError:
    rate = one.sample_rate
    rest = "is longer" if more is None else f"has {more} ({duration(more / rate)})"
    return ValueError(
        f"{one.name} has {length} samples ({duration(length / rate)}), but {printable(other.name)} {rest}: combine "
        "stems of one song, from programs that keep its length, or cut them to one length"
    )
