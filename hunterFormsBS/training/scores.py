"""Scores of stems and songs: their means, how checkpoints differ in them, and tables of them as files."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from hunterFormsBS.installation import how_to_install
from hunterFormsBS.training.states import appearing

PARQUET = ".parquet"


class Score(NamedTuple):
    """Metrics of a stem of a song, by name. A silent stem has none, or few."""

    song: str
    stem: str
    values: dict[str, float]


class Spread(NamedTuple):
    """How a number varies over songs.

    Parameters
    ----------
    mean : float
    deviation : float
        Standard deviation of a sample; NaN for a single song.
    songs : int
        How many songs have the number.
    best, worst : (str, float)
        The songs with the highest and the lowest number.
    """

    mean: float
    deviation: float
    songs: int
    best: tuple[str, float]
    worst: tuple[str, float]


class Comparison(NamedTuple):
    """Scores of several checkpoints on the same songs.

    Parameters
    ----------
    scores : dict of str to list of Score
        For each checkpoint, in the order of songs.
    apart : dict of str to dict of str to (str, str)
        For each checkpoint but the first the stems that the first has by the same name as another sum of files: what
        they are there and here. `other` is one where checkpoints have different instruments.
    """

    scores: dict[str, list[Score]]
    apart: dict[str, dict[str, tuple[str, str]]]

    def differences(self, name: str, metric: str) -> dict[str, Spread]:
        """Return how a metric of a checkpoint differs from that of the first, for each stem that can be compared.

        Scores are paired: the same stem of the same song is subtracted, so that songs that are hard for both
        checkpoints do not count as spread.
        """
        before, after = (_by_stem(each, metric) for each in (next(iter(self.scores.values())), self.scores[name]))
        paired = {
            stem: {song: score - before[stem][song] for song, score in by_song.items() if song in before[stem]}
            for stem, by_song in after.items()
            if stem in before and stem not in self.apart[name]
        }
        return {stem: _spread(by_song) for stem, by_song in paired.items() if by_song}

    def describe(self, metrics: Sequence[str]) -> Iterator[str]:
        """Yield lines with the means of each checkpoint, its differences to the first, and best and worst songs."""
        first, *others = self.scores
        for metric in metrics:
            for name, table in self.scores.items():
                by_stem = means(table, metric)
                yield f"{name}: {metric}: " + ", ".join(f"{stem} {mean:.2f}" for stem, mean in by_stem.items())
        for name in others:
            for metric in metrics:
                for stem, spread in self.differences(name, metric).items():
                    yield f"{name}: {metric} of {stem} minus that of {first}: {_in_words(spread)}"
            for stem, (there, here) in self.apart[name].items():
                yield f"{name}: {stem} is not compared: it is {here}, and for {first} {there}"
        for metric in metrics:
            for name, table in self.scores.items():
                for stem, spread in spreads(table, metric).items():
                    (best, high), (worst, low) = spread.best, spread.worst
                    yield f"{name}: {metric} of {stem}: best {high:.2f} ({best}), worst {low:.2f} ({worst})"


def means(scores: Sequence[Score], metric: str) -> dict[str, float]:
    """Return the mean of a metric over songs, for each stem. A stem that has it in no song has no entry."""
    return {stem: fmean(by_song.values()) for stem, by_song in _by_stem(scores, metric).items()}


def spreads(scores: Sequence[Score], metric: str) -> dict[str, Spread]:
    """Return how a metric varies over songs, for each stem."""
    return {stem: _spread(by_song) for stem, by_song in _by_stem(scores, metric).items()}


def _by_stem(scores: Sequence[Score], metric: str) -> dict[str, dict[str, float]]:
    """Return the values of a metric by stem and song."""
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for score in scores:
        if metric in score.values:
            values[score.stem][score.song] = score.values[metric]
    return values


def _spread(by_song: Mapping[str, float]) -> Spread:
    numbers = list(by_song.values())
    highest, lowest = (choose(by_song, key=lambda song: by_song[song]) for choose in (max, min))
    deviation = stdev(numbers) if len(numbers) > 1 else nan
    return Spread(fmean(numbers), deviation, len(numbers), (highest, by_song[highest]), (lowest, by_song[lowest]))


def _in_words(spread: Spread) -> str:
    deviation = f", standard deviation {spread.deviation:.2f}" if spread.songs > 1 else ""
    (best, high), (worst, low) = spread.best, spread.worst
    return (
        f"{spread.mean:+.2f}{deviation}, {spread.songs} song{'s' * (spread.songs > 1)}; best {high:+.2f} ({best}), "
        f"worst {low:+.2f} ({worst})"
    )


def writer_for(pathFilename: Path) -> Callable[[Mapping[str, Sequence[object]]], None]:
    """Return what writes columns, by name, to a file, as its suffix says: `.parquet`, or CSV for all others.

    The file appears when it is complete.

    Raises
    ------
    ImportError
        If pyarrow, which writes Parquet, is not installed.
    """
    write = _write_csv if pathFilename.suffix.lower() != PARQUET else _writer_of_parquet()

    def write_whole(columns: Mapping[str, Sequence[object]]) -> None:
        pathFilename.parent.mkdir(parents=True, exist_ok=True)
        with appearing(pathFilename) as unfinished:
            write(unfinished, columns)

    return write_whole


def _writer_of_parquet() -> Callable[[Path, Mapping[str, Sequence[object]]], None]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"Parquet is written by pyarrow: {how_to_install('parquet')} ({error})") from error

    arrow: Any = pyarrow  # these publish no types
    files: Any = parquet
    return lambda unfinished, columns: files.write_table(arrow.table(dict(columns)), unfinished)


def _write_csv(unfinished: Path, columns: Mapping[str, Sequence[object]]) -> None:
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def columns_of(scores: Mapping[str, Sequence[Score]], metrics: Sequence[str]) -> dict[str, list[object]]:
    """Return a table with a line for each stem of each song of each checkpoint, as columns by name.

    Metrics that a stem does not have are None. A single checkpoint has no column.
    """
    lines = [(checkpoint, score) for checkpoint, each in scores.items() for score in each]
    columns: dict[str, list[object]] = {} if len(scores) == 1 else {"checkpoint": [name for name, _ in lines]}
    columns |= {"song": [score.song for _, score in lines], "stem": [score.stem for _, score in lines]}
    columns |= {metric: [score.values.get(metric) for _, score in lines] for metric in metrics}
    return columns


def write_table(pathFilename: Path, scores: Sequence[Score], metrics: Sequence[str]) -> None:
    """Write a file with a line for each stem of each song. The metrics that a stem does not have are empty."""
    writer_for(pathFilename)(columns_of({"": scores}, metrics))


def read_table(pathFilename: Path) -> list[Score]:
    """Read a CSV file that `write_table` wrote."""
    with pathFilename.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    named = ("song", "stem")
    return [
        Score(row["song"], row["stem"], {key: float(each) for key, each in row.items() if key not in named and each})
        for row in rows
    ]
