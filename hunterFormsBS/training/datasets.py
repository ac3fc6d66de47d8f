"""Dataset types, by the numbers of Music-Source-Separation-Training.

    songs = find_data(2, ["stems"], ("vocals", "drums"), 44100)

1: folders of songs, each stem drawn independently; 2: a folder of files for each instrument; 3: CSV files that list
files and instruments; 4: folders of songs whose stems stay together; 6: the same, with the songs' own mixtures.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import soundfile

from hunterFormsBS.training.truth import SUFFIXES, Song, find_songs, visible


class Kind(NamedTuple):
    """How a type of dataset draws stems.

    Parameters
    ----------
    remix : float
        Probability of drawing each independently.
    own_mixture : bool
        Whether the mixture is read from its own file.
    single_files : bool
        Whether files do not belong to songs, so that stems can only be drawn independently.
    """

    remix: float
    own_mixture: bool = False
    single_files: bool = False


KINDS: Final[Mapping[int, Kind]] = {
    1: Kind(1.0),
    2: Kind(1.0, single_files=True),
    3: Kind(1.0, single_files=True),
    4: Kind(0.0),
    6: Kind(0.0, own_mixture=True),
}


def find_data(kind: int | None, paths: Sequence[Path], instruments: Sequence[str], sample_rate: int) -> list[Song]:
    """List the songs of a dataset, reading only headers of files.

    Parameters
    ----------
    kind : int or None
        One of `KINDS`; None: folders of songs.
    paths : sequence of Path
        Folders, or CSV files with the columns `instrum` and `path`. Relative paths start at the CSV file's folder.
    instruments : sequence of str
    sample_rate : int
        Hz.

    Returns
    -------
    list of Song
        A single file is a song whose other instruments have no files.

    Raises
    ------
    ValueError
        If an instrument has no file, or a file has another sample rate.
    """
    if kind not in (2, 3):
        return [song for path in paths for song in find_songs(path, instruments, sample_rate)]
    listed = {name: list(_files(kind, paths, name)) for name in instruments}
    songs: list[Song] = []
    for number, (name, files) in enumerate(listed.items()):
        if not files:
            where = ", ".join(str(path) for path in paths)
            how = f"a folder {name} with audio files" if kind == 2 else f"lines with instrum {name}"
            raise ValueError(f"{where} has no file for {name}: add {how}, or change training.instruments")
        for file in files:
            header = soundfile.info(str(file))
            if header.samplerate != sample_rate:
                raise ValueError(
                    f"{file} has {header.samplerate} Hz, and the configuration {sample_rate} Hz: convert the file, "
                    "or change audio.sample_rate"
                )
            parts: list[tuple[Path, ...]] = [()] * len(instruments)
            parts[number] = (file,)
            songs.append(Song(file.parent, header.frames, tuple(parts)))
    return songs


def _files(kind: int, paths: Sequence[Path], instrument: str) -> Iterator[Path]:
    for path in paths:
        if kind == 2:
            yield from (file for file in visible(path / instrument) if file.suffix.lower() in SUFFIXES)
            continue
        with path.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            if missing := {"instrum", "path"} - set(reader.fieldnames or ()):
                raise ValueError(f"{path} has no column {' and no column '.join(sorted(missing))}: add a header line")
            for row in reader:
                if row["instrum"] != instrument:
                    continue
                file = path.parent / row["path"]
                if not file.is_file():
                    raise ValueError(f"{path}, line {reader.line_num}: there is no file {file}: remove the line")
                yield file
