"""Measure how many training segments a second are read, by format and number of workers."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
from torch.utils.data import DataLoader

from benchmarks.measure import summary
from benchmarks.report import Report, argument_parser
from hunterFormsBS.training.cache import Cache, files_of
from hunterFormsBS.training.segments import Positions, Segments
from hunterFormsBS.training.stempegSong import decode
from hunterFormsBS.training.truth import Read, find_songs, read

STEMS = ("vocals", "drums", "bass", "other")
FORMATS = ("wav", "flac", "mp3", "cache of mp3")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    options = _options(argv)
    report = Report(options)
    with TemporaryDirectory() as folder:
        rows = []
        numbers: dict[str, dict[int, list[float]]] = {}
        for name, segments in sources(Path(folder), options.songs, options.song_seconds, options.seconds):
            numbers[name] = {
                workers: [rate(segments, workers, options.segments) for _ in range(options.rounds)]
                for workers in options.workers
            }
            by_workers = {
                f"{number} worker{'s' if number > 1 else ''}": str(summary(rates))
                for number, rates in numbers[name].items()
            }
            rows.append({"read from": name, **by_workers})
    report.table(f"Segments of {len(STEMS)} stems, {options.seconds:g} s, read in a second", rows, numbers)
    report.finish()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("loading", __doc__ or "", rounds=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8], help="processes (default 1 2 4 8)")
    parser.add_argument("--segments", type=int, default=48, help="read in each measurement (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a segment (default %(default)s)")
    parser.add_argument("--songs", type=int, default=4, help="how many (default %(default)s)")
    parser.add_argument("--song-seconds", type=float, default=180.0, help="length of each (default %(default)s)")
    options = parser.parse_args(argv)
    if options.tiny:
        options.songs, options.song_seconds, options.seconds, options.segments = 1, 4.0, 0.5, 4
        options.workers = options.workers[:2]
    return options


def sources(folder: Path, songs: int, song_seconds: float, seconds: float) -> Iterator[tuple[str, Segments]]:
    """Yield a reader of segments for each of `FORMATS`."""
    for name in FORMATS:
        suffix = name.rpartition(" ")[2]
        reading: Read = read
        if name.startswith("cache"):
            cache = Cache(folder / "cache")
            cache.fill(files_of(find_songs(folder / suffix, STEMS, 44100)))
            reading = cache.read
        else:
            write_songs(folder / suffix, suffix, songs, song_seconds)
        yield (
            name,
            Segments(
                find_songs(folder / suffix, STEMS, 44100),
                chunk_size=round(seconds * 44100),
                channels=2,
                seed=0,
                targets=range(len(STEMS)),
                remix=1.0,
                reading=reading,
            ),
        )


def write_songs(folder: Path, suffix: str, songs: int, seconds: float) -> None:
    """Write songs of a length in a format: the music that stempeg brings along, over and over."""
    audio = {name: repeated(samples, seconds) for name, (samples, _) in decode().items() if name in STEMS}
    for number in range(songs):
        song = folder / f"song {number}"
        song.mkdir(parents=True)
        for stem, samples in audio.items():
            soundfile.write(str(song / f"{stem}.{suffix}"), samples, 44100)


def repeated(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Return audio, `(t, s)`, of this length: a short piece over and over."""
    length = round(seconds * 44100)
    return np.tile(samples, (-(-length // len(samples)), 1))[:length]


def rate(segments: Segments, workers: int, count: int, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how many segments a second a loader yields while as many are under way at the end as at the beginning."""
    positions = Positions(0, count + 4 * workers, batch_size=1, rank=0, world_size=1)
    with warnings.catch_warnings():
        # More workers than cores are what is measured.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        batches = iter(DataLoader(segments, batch_sampler=positions, num_workers=workers))
    for _ in range(2 * workers):
        next(batches)
    start = clock()
    for _ in range(count):
        next(batches)
    return count / (clock() - start)


if __name__ == "__main__":
    main()
