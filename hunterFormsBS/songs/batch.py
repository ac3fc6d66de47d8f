"""Many songs: everything that can be is checked before a model is loaded; then they are separated one by one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import torch

from hunterFormsBS.console import RECORD, Console, one_line
from hunterFormsBS.devices import find_device
from hunterFormsBS.failures import FAILURES, UsageError
from hunterFormsBS.plot import matplotlib_module, save_spectrogram
from hunterFormsBS.songs.encodings import Encoding
from hunterFormsBS.songs.finding import Song, find_songs, is_pipe
from hunterFormsBS.songs.graph import Graph
from hunterFormsBS.songs.levels import Energies, loudest_part, sounding_parts
from hunterFormsBS.songs.names import check_length
from hunterFormsBS.songs.options import Options
from hunterFormsBS.songs.outputs import Outputs
from hunterFormsBS.songs.parts import Part, clock
from hunterFormsBS.songs.plan import Checkpoints, Plan
from hunterFormsBS.songs.progress import SongProgress
from hunterFormsBS.songs.reading import AudioFile, probe_audio
from hunterFormsBS.songs.separating import separate_song
from hunterFormsBS.songs.sharing import Rank, rank_in_job, share_of, wait_for_others
from hunterFormsBS.songs.tags import read_tags, write_tags
from hunterFormsBS.songs.threads import Behind, side_by_side
from hunterFormsBS.songs.together import Existing, check_targets, check_writable, identity, remove_leftovers
from hunterFormsBS.songs.writing import FULL, Level, StemFile, writing_together

__all__ = ["separate_all"]

FRAMES_PER_BYTE = 16
"""Samples of each channel for a byte of a file, at most: a guess at lengths that only reading tells."""


def separate_all(
    options: Options, console: Console, find_plan: Callable[[Options, Console], Plan] = Checkpoints
) -> int:
    """Separate songs as the command line says, and return the exit status.

    `find_plan` returns the plan of the models, before any is loaded. What all songs need raises: a `UsageError` if the
    command line cannot be used, else one of `FAILURES`.
    """
    job = rank_in_job()
    try:
        status = _separate_share(options, console, job, find_plan)
    except Exception:
        wait_for_others(job, failed=True)
        raise
    wait_for_others(job, failed=status != 0)
    return status


def _separate_share(
    options: Options, console: Console, job: Rank, find_plan: Callable[[Options, Console], Plan]
) -> int:
    if job.size > 1 and any(map(is_pipe, options.mixtures)):
        raise UsageError("several processes cannot share the contents of a pipe: pass files, or start one process")
    encoding, part = _encoding(options), options.part()
    if options.spectrograms:
        matplotlib_module("figure", "--spectrograms")
    device = find_device(options.device, local_rank=job.local_rank if job.size > 1 else None)
    # A missing song is told before anything is fetched, and a missing checkpoint before a pipe is waited for.
    plan = find_plan(options, console) if any(map(is_pipe, options.mixtures)) else None
    with ExitStack() as copies:
        songs = find_songs(options.mixtures, options.output, copies, console)
        batch = _Batch(options, console, encoding, part, songs)
        lengths = [batch.seconds(song) for song in songs] if job.size > 1 else []
        share = share_of(job, songs, lengths)
        present = share if options.skip_existing else batch.those_that_succeed(share, lambda song: song.source.stat())
        failed = len(share) > len(present)
        if not present:
            return int(failed)
        plan = plan or find_plan(options, console)
        batch.name_outputs(plan)
        batch.remove_leftovers(share)
        waiting = batch.without_existing(present)
        checked = batch.those_that_succeed(waiting, batch.check)
        failed = failed or len(waiting) > len(checked)
        if not checked:
            return int(failed)
        check_writable(options.output)
        graph, names = plan.load(device)
        if batch.outputs.name_stems(names):
            checked = batch.without_existing(checked)
        graph = graph.with_rests(batch.outputs.rests)
        separated = batch.those_that_succeed(checked, lambda song: batch.separate(song, graph))
    return int(failed or len(separated) < len(checked))


class _Batch:
    """Songs, and the files that they become."""

    outputs: Outputs

    def __init__(
        self, options: Options, console: Console, encoding: Encoding, part: Part | None, songs: Sequence[Song]
    ) -> None:
        self.options = options
        self.console = console
        self.encoding = encoding
        self.part = part
        self.songs = songs
        self._existing: Existing = "replace" if options.overwrite else "keep" if options.skip_existing else "refuse"
        self._kept = {identity(song.source) for song in songs} - {None}
        self._probe = cache(self._probed)

    def name_outputs(self, plan: Plan) -> None:
        """Name the files of all songs, as far as the plan tells."""
        self.outputs = Outputs(
            self.options, self.encoding, self.songs, self.console, model=plan.label, model_type=plan.model_type
        )
        self.outputs.name_stems(plan.names)

    def remove_leftovers(self, songs: Sequence[Song]) -> None:
        """Remove what killed processes left where the files of songs are to be."""
        output = self.options.output
        for folder in {output, *(file.parent for song in songs for file in self.outputs.expected(song))}:
            remove_leftovers(output, folder)

    def seconds(self, song: Song) -> float:
        """Return about how long a song is, at most where only reading tells, 0 if it cannot be read."""
        try:
            audio = self._probe(song)
        except FAILURES:
            return 0.0
        longest = audio.pathFilename.stat().st_size * FRAMES_PER_BYTE
        return (longest if audio.length is None else audio.length) / audio.sample_rate

    def without_existing(self, songs: Sequence[Song]) -> list[Song]:
        """Leave out songs whose files all exist, if `--skip-existing` asks for it."""
        if not (self.options.skip_existing and self.outputs.names):
            return list(songs)
        waiting: list[Song] = []
        for song in songs:
            if all(map(os.path.lexists, self.outputs.paths(song))):
                self._record(song, "skipped", **self._listed(song))
            else:
                waiting.append(song)
        return waiting

    def check(self, song: Song) -> None:
        """Raise if a song cannot be read, or its stems cannot be written."""
        audio = self._probe(song)
        self.encoding.check(audio.sample_rate, audio.channels)
        for file in self.outputs.expected(song):
            check_length(file, self.options.output)
        check_targets(self.options.output, self.outputs.paths(song), existing=self._existing, kept=self._kept)

    def separate(self, song: Song, graph: Graph) -> None:
        """Separate one song and write its stems, block by block."""
        if not self.without_existing([song]):
            return  # Another process was faster.
        self.check(song)
        options, audio, files = self.options, self._probe(song), self.outputs.files(song)
        kept = {path for path in self.outputs.paths(song) if self._existing == "keep" and os.path.lexists(path)}
        self.console.warnings.clear()  # Those of the checkpoint belong to no song.
        begun = time.monotonic()
        tags = read_tags(song.source)
        part = self.part or loudest_part(audio.blocks(), audio.sample_rate)
        energies = [Energies(audio.sample_rate) for _ in files]
        with (
            SongProgress(self.console, song.path, graph.models) as progress,
            writing_together(
                options.output,
                files,
                audio.sample_rate,
                self.encoding,
                existing=self._existing,
                level=_level(options, self.encoding),
                finish=lambda path: write_tags(tags, [path]),
                pictures=self.outputs.pictures(files),
                draw=_draw,
            ) as folder,
        ):
            opened = folder.open(audio.channels)
            stems = separate_song(graph, audio, part=part, report=progress, scratch=folder.scratch)
            with Behind[torch.Tensor](lambda block: side_by_side(_take, opened, energies, block)) as write:
                for block in stems:
                    write(block.roll(1, dims=0) if self.encoding.is_together else block)  # the mixture comes first
        self._tell(song, part, folder.factor, [file for file in folder.written if file.path not in kept])
        sounding = (sounding_parts(each, audio.sample_rate, options.activity) for each in energies)
        self._record(
            song,
            "separated",
            **self._listed(song),
            duration=folder.written[0].written / folder.written[0].sample_rate,
            seconds=time.monotonic() - begun,
            start=part.start,
            factor=folder.factor,
            activity={
                name: [(round(start + part.start, 3), round(end + part.start, 3), level) for start, end, level in parts]
                for name, parts in zip(files, sounding, strict=True)
            },
        )

    def _tell(self, song: Song, part: Part, factor: float, written: Sequence[StemFile]) -> None:
        """Report clipping, levels and files of a separated song."""
        for file in written:
            if file.clipped:
                self.console.warn(
                    f"{file.clipped} values of {file.path} were beyond full scale and are cut off: --clip scale lowers "
                    "all stems, --format wav --bit-depth 32 keeps them"
                )
        if factor != 1:
            why = "" if self.options.normalize else ", to stay in full scale"
            self.console.remark(f"{song.path}: all stems are multiplied by {factor:.4f}{why}")
        if self.part is None:
            self.console.remark(f"{song.path}: the preview begins at {clock(part.start)}")
        paths = dict.fromkeys(file.path for file in written)
        for path in [*paths, *self.outputs.pictures({str(path): path for path in paths}).values()]:
            self.console.show(path)

    def _listed(self, song: Song) -> dict[str, object]:
        """Return the files of a song for its record."""
        files = self.outputs.files(song)
        pictures = self.outputs.pictures(files)
        return {
            "outputs": {name: str(path) for name, path in files.items()},
            "pictures": {name: str(pictures[path]) for name, path in files.items() if path in pictures},
        }

    def those_that_succeed(self, songs: Iterable[Song], action: Callable[[Song], object]) -> list[Song]:
        """Do the action for each song, report each failure in one line, and return the other songs."""
        succeeded: list[Song] = []
        waiting = list(songs)
        for number, song in enumerate(waiting, start=1):
            try:
                action(song)
            except FAILURES as error:
                text = one_line(error)
                text = text if str(song.path) in text else f"{song.path}: {text}"
                full = isinstance(error, OSError) and error.errno in FULL
                left = waiting[number:] if full else []
                self.console.tell(f"error: {text}{f': {len(left)} more are not separated' if left else ''}")
                self._record(song, "failed", error=text)
                for other in left:
                    self._record(other, "failed", error=f"not separated after an error: {text}")
                if full:
                    break
            else:
                succeeded.append(song)
        return succeeded

    def _probed(self, song: Song) -> AudioFile:
        options = self.options
        return probe_audio(song.source, name=song.path, stream=options.audio_stream, downmix=options.downmix)

    def _record(self, song: Song, status: str, **known: object) -> None:
        """Print the record of a song, and clear its warnings."""
        self.console.record(
            {**RECORD, "song": str(song.path), "status": status, **known, "warnings": [*self.console.warnings]}
        )
        self.console.warnings.clear()


def _take(file: StemFile, energies: Energies, block: torch.Tensor) -> None:
    """Write and measure the next samples of a stem."""
    energies.add(block)
    file.write(block)


def _draw(path: Path, picture: Path) -> None:
    """Draw the spectrogram of a complete file."""
    audio = probe_audio(path)
    save_spectrogram(picture, audio.blocks(), audio.length or 1, audio.sample_rate)


def _level(options: Options, encoding: Encoding) -> Level:
    """Return the level that stems of a song are multiplied to reach."""
    return Level(**(options.normalize or {}), at_most=0.0 if options.clip == "scale" and encoding.cuts_off else None)


def _encoding(options: Options) -> Encoding:
    """Return the encoding of the options."""
    try:
        encoding = Encoding.of(options.format, options.bit_depth, options.quality, options.sample_rate)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if encoding.is_together and options.spectrograms:
        raise UsageError(
            f"--spectrograms are of single stems, and --format {options.format} is one file for all of them"
        )
    return encoding
