"""Separate a corpus of songs on a cluster, with Ray Data.

    python examples/separate_corpus.py s3://bucket/songs --checkpoint model.ckpt --output s3://bucket/stems --actors 8

Songs are read from, and stems written to, any file system of fsspec. Each actor holds the model and uses a GPU, if
there are any. `OUTPUT/results` gets a Parquet table with a row for each song: `song`, `status`, `outputs`, `duration`,
`seconds`, `error`. Failed songs have a row with the reason. Ray restarts lost actors, and gives their songs to others.
The same command again separates the songs that no table lists as separated.

Needs `python -m pip install -e ".[corpus]"`, and fsspec's package for the file system, such as s3fs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, get_args

import fsspec
import ray.data
import ray.exceptions
import torch

from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.checkpoint.byName import is_remote
from hunterFormsBS.choices import Format
from hunterFormsBS.failures import FAILURES
from hunterFormsBS.songs.encodings import DEPTHS, Encoding
from hunterFormsBS.songs.finding import AUDIO_SUFFIXES
from hunterFormsBS.songs.graph import Graph, Separator
from hunterFormsBS.songs.names import key_of, song_name
from hunterFormsBS.songs.reading import probe_audio
from hunterFormsBS.songs.separating import separate_song
from hunterFormsBS.songs.settings import find_configuration, read_settings
from hunterFormsBS.songs.writing import writing_together

ATTEMPTS = 3
"""How often a song is retried whose actor was lost: the song itself may exhaust the memory."""

ROWS_PER_FILE = 50


class SeparateSong:
    """An actor: a model, loaded once, that separates songs one after another.

    Parameters
    ----------
    checkpoint : str
        A file on a shared file system, a name of the catalogue, or `hub:OWNER/REPOSITORY/FILE`.
    configuration : str | None
    output : str
        Folder, or address of one.
    kind : Format
        Of the files.
    """

    def __init__(self, checkpoint: str, configuration: str | None, output: str, kind: Format) -> None:
        file, used, content = find_configuration(
            Path(checkpoint), None if configuration is None else Path(configuration)
        )
        settings, _ = read_settings(content)
        model = from_checkpoint(file, used, device="cuda" if torch.cuda.is_available() else "cpu")
        self.graph = Graph.of([Separator(model, settings)])
        self.names = settings.names
        if len(self.names) != model.num_stems:
            self.names = [f"stem_{number}" for number in range(1, model.num_stems + 1)]
        self.output = output
        self.encoding = Encoding(kind, DEPTHS[kind])

    def __call__(self, row: Mapping[str, str]) -> dict[str, Any]:
        """Separate the song of a row, and return the row of results."""
        begun = time.monotonic()
        result: dict[str, Any] = {
            "song": row["song"],
            "status": "separated",
            "outputs": [],
            "duration": 0.0,
            "error": "",
        }
        try:
            result["outputs"], result["duration"] = self.separate(row["song"], row["name"])
        except FAILURES as error:
            result["status"], result["error"] = "failed", " ".join(str(error).split()) or type(error).__name__
        result["seconds"] = time.monotonic() - begun
        return result

    def separate(self, song: str, name: str) -> tuple[list[str], float]:
        """Separate one song, and return the addresses of its stems, and its duration in seconds."""
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            local = folder / PurePosixPath(song).name
            source, path = fsspec.core.url_to_fs(song)
            source.get_file(path, str(local))
            audio = probe_audio(local, name=song)
            files = {stem: folder / "stems" / f"{stem}.{self.encoding.format}" for stem in self.names}
            with writing_together(folder / "stems", files, audio.sample_rate, self.encoding) as written:
                opened = written.open(audio.channels)
                for block in separate_song(self.graph, audio):
                    for file, stem in zip(opened, block, strict=True):
                        file.write(stem)
            target, root = fsspec.core.url_to_fs(self.output)
            outputs = [f"{root}/{name}/{file.name}" for file in files.values()]
            target.makedirs(f"{root}/{name}", exist_ok=True)
            for file, address in zip(files.values(), outputs, strict=True):
                # Files with final names are complete: object stores guarantee that, and elsewhere files are renamed.
                part = f"{address}.part" if "file" in target.protocol else address
                target.put_file(str(file), part)
                if part != address:
                    target.mv(part, address)
            return [str(target.unstrip_protocol(address)) for address in outputs], opened[0].written / audio.sample_rate


def find_songs(songs: str, column: str) -> list[str]:
    """Return the addresses in a column of a table, or of all audio files below a folder."""
    files, path = fsspec.core.url_to_fs(songs)
    if path.endswith((".parquet", ".csv")):
        import pyarrow.csv
        import pyarrow.parquet

        with files.open(path) as file:
            table = pyarrow.parquet.read_table(file) if path.endswith(".parquet") else pyarrow.csv.read_csv(file)
        if column not in table.column_names:
            raise ValueError(f"{songs} has no column {column}, but {', '.join(table.column_names)}: pass --column")
        return list(dict.fromkeys(map(str, table[column].to_pylist())))
    found = [each for each in sorted(files.find(path)) if PurePosixPath(each).suffix.lower() in AUDIO_SUFFIXES]
    if not found:
        raise ValueError(f"{songs} holds no audio files: pass a folder that does, or a table")
    return [str(files.unstrip_protocol(each)) for each in found]


def name_songs(songs: Sequence[str]) -> dict[str, str]:
    """Return for each song its folder in the output: its path below the common folder of all songs."""
    parents = [str(PurePosixPath(song).parent) for song in songs]
    common = os.path.commonpath(parents) if parents else ""
    below = {song: PurePosixPath(song).relative_to(common) for song in songs}
    names = {song: str(path.parent / song_name(path)) for song, path in below.items()}
    keys: dict[str, str] = {}
    for song, name in names.items():
        if (other := keys.setdefault(key_of(name), song)) != song:
            raise ValueError(f"{other} and {song} would both be written to {name}: rename one of them")
    return names


def results_so_far(output: str) -> dict[str, str]:
    """Return the results of songs from the tables of all runs."""
    import pyarrow.parquet

    files, root = fsspec.core.url_to_fs(output)
    statuses: dict[str, str] = {}
    for path in files.glob(f"{root}/results/*.parquet"):
        with files.open(path) as file:
            for row in pyarrow.parquet.read_table(file, columns=["song", "status"]).to_pylist():
                if statuses.get(row["song"]) != "separated":
                    statuses[row["song"]] = row["status"]
    return statuses


def separate_corpus(
    songs: Mapping[str, str],
    output: str,
    *,
    checkpoint: str,
    configuration: str | None = None,
    kind: Format = "flac",
    actors: int = 1,
    actor: type[SeparateSong] = SeparateSong,
) -> list[str]:
    """Separate songs, write the table of results, and return the songs without one because their actors died.

    Parameters
    ----------
    songs : Mapping[str, str]
        Addresses, and for each its folder within the output.
    output : str
    checkpoint, configuration, kind
        See `SeparateSong`.
    actors : int
        Number of models that work in parallel.
    actor : type[SeparateSong]
        Their class.
    """
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # A song that kills its actor does not end the others.
    rows = [{"song": song, "name": name} for song, name in songs.items()]
    # One block per song: finished songs of a lost actor are not repeated.
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        actor,
        fn_constructor_args=(checkpoint, configuration, output, kind),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
        ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": ATTEMPTS},
    )
    files, root = fsspec.core.url_to_fs(output)
    files.makedirs(f"{root}/results", exist_ok=True)
    results.write_parquet(f"{root}/results", filesystem=files, min_rows_per_file=min(ROWS_PER_FILE, len(rows)))
    return sorted(songs.keys() - results_so_far(output).keys())


def main() -> None:
    """Separate the songs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("songs", help="folder of songs, or a table of their addresses: .parquet or .csv")
    parser.add_argument("--column", default="song", help="of the table (default: song)")
    parser.add_argument("--checkpoint", required=True, help="file, name of the catalogue, or hub:OWNER/REPOSITORY/FILE")
    parser.add_argument("--configuration", help="of the checkpoint, if it does not hold its own")
    parser.add_argument("--output", required=True, help="folder for stems and results")
    parser.add_argument("--format", choices=get_args(Format), default="flac")
    parser.add_argument("--actors", type=int, default=1, help="models that work side by side (default: 1)")
    parser.add_argument("--address", help="of a cluster of Ray (default: that of RAY_ADDRESS, else this machine)")
    arguments = parser.parse_args()
    if not is_remote(arguments.checkpoint):
        # Report a wrong name before a cluster starts.
        find_configuration(Path(arguments.checkpoint), arguments.configuration and Path(arguments.configuration))
    songs = name_songs(find_songs(arguments.songs, arguments.column))
    statuses = results_so_far(arguments.output)
    waiting = {song: name for song, name in songs.items() if statuses.get(song) != "separated"}
    if waiting:
        if not ray.is_initialized():
            ray.init(arguments.address, log_to_driver=False, logging_level="error")
        try:
            separate_corpus(
                waiting,
                arguments.output,
                checkpoint=arguments.checkpoint,
                configuration=arguments.configuration,
                kind=arguments.format,
                actors=arguments.actors,
            )
        except ray.exceptions.RayError as error:
            # An actor could not start: its traceback ends with the reason.
            sys.exit(str(error).strip().rpartition("\n")[2])
        statuses = results_so_far(arguments.output)
    counts = {status: sum(statuses.get(song) == status for song in songs) for status in ("separated", "failed")}
    lost = len(songs) - sum(counts.values())
    print(f"{counts['separated']} songs are separated, {counts['failed']} failed, {lost} ended their actors")
    if counts["failed"] or lost:
        sys.exit(f"see {arguments.output}/results for the reasons, and start again for what was lost")


if __name__ == "__main__":
    from endings import run

    run(main)
