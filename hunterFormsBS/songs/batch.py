"""Many songs: all is checked that can be before a model is loaded, and then they are separated one by one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.checkpoint.adapters import Adapters, read_adapters
from hunterFormsBS.console import Console, one_line
from hunterFormsBS.devices import find_device
from hunterFormsBS.failures import FAILURES, UsageError
from hunterFormsBS.songs.finding import Song, find_songs, is_pipe
from hunterFormsBS.songs.names import check_apart, check_length, fill_in, key_of, safe_name
from hunterFormsBS.songs.options import Options
from hunterFormsBS.songs.parts import Part, clock, loudest_part
from hunterFormsBS.songs.progress import SongProgress
from hunterFormsBS.songs.reading import AudioFile, probe_audio
from hunterFormsBS.songs.separating import Combination, Separator, separate_song
from hunterFormsBS.songs.settings import Settings, find_configuration, read_settings, stem_indices
from hunterFormsBS.songs.sharing import Rank, rank_in_job, share_of, wait_for_others
from hunterFormsBS.songs.tags import read_tags, write_tags
from hunterFormsBS.songs.threads import Behind, side_by_side
from hunterFormsBS.songs.together import Existing, check_targets, check_writable, identity, remove_leftovers
from hunterFormsBS.songs.writing import DEPTHS, FULL, SUBTYPES, Encoding, StemFile, writing_together

__all__ = ["separate_all"]

FRAMES_PER_BYTE = 16
"""Samples of each channel for a byte of a file, at most: a guess at lengths that only reading tells."""


class _Source(NamedTuple):
    """A checkpoint that is not loaded yet, and which of its stems are asked for."""

    checkpoint: Path
    configuration: Path | Mapping[str, Any] | None
    settings: Settings
    stems: list[int] | None
    adapters: Adapters | None


def separate_all(options: Options, console: Console) -> int:
    """Separate songs as the command line says, and return the exit status.

    Raises
    ------
    UsageError
        If the command line cannot be used.
    ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError
        If something fails that all songs need.
    """
    job = rank_in_job()
    try:
        status = _separate_share(options, console, job)
    except Exception:
        wait_for_others(job, failed=True)
        raise
    wait_for_others(job, failed=status != 0)
    return status


def _separate_share(options: Options, console: Console, job: Rank) -> int:
    if job.size > 1 and any(map(is_pipe, options.mixtures)):
        raise UsageError("several processes cannot share what comes out of a pipe: pass files, or start one process")
    encoding, part = _encoding(options), options.part()
    device = find_device(options.device, local_rank=job.local_rank if job.size > 1 else None)
    sources, names = _sources(options, console)
    with ExitStack() as copies:
        songs = find_songs(options.mixtures, options.output, copies, console)
        batch = _Batch(options, console, encoding, part, sources, songs)
        batch.name_stems(names)
        lengths = [batch.seconds(song) for song in songs] if job.size > 1 else []
        share = share_of(job, songs, lengths)
        batch.remove_leftovers(share)
        waiting = batch.without_existing(share)
        checked = batch.those_that_succeed(waiting, batch.check)
        failed = len(waiting) > len(checked)
        if not checked:
            return int(failed)
        check_writable(options.output)
        separators = [_load(source, options, device) for source in sources]
        if batch.name_stems(_names_loaded(names, separators, console)):
            checked = batch.without_existing(checked)
        separated = batch.those_that_succeed(checked, lambda song: batch.separate(song, separators))
    return int(failed or len(separated) < len(checked))


class _Batch:
    """Songs, and the files that they become."""

    def __init__(
        self,
        options: Options,
        console: Console,
        encoding: Encoding,
        part: Part | None,
        sources: Sequence[_Source],
        songs: Sequence[Song],
    ) -> None:
        self.options = options
        self.console = console
        self.encoding = encoding
        self.part = part
        self.songs = songs
        self.names: list[str] = []
        """Of the files of each song; empty while only the model tells how many there are."""
        self._model = safe_name("+".join(source.checkpoint.stem for source in sources))
        self._existing: Existing = "replace" if options.overwrite else "keep" if options.skip_existing else "refuse"
        self._kept = {identity(song.source) for song in songs} - {None}
        self._probe = cache(self._probed)

    def name_stems(self, stems: Sequence[str]) -> bool:
        """Take the names of the stems, and tell whether they are others than before.

        Raises
        ------
        UsageError
            If two files would be one.
        """
        residual = self.options.residual
        if residual is not None and key_of(residual) in map(key_of, stems):
            raise UsageError(f"--residual {residual} would overwrite the stem of this name: call it --residual NAME")
        names = [*stems, *([residual] if stems and residual is not None else [])]
        if len(set(map(key_of, names))) < len(names):
            raise UsageError(
                f"two stems would be written as one of {', '.join(names)}: give the stems of the configuration "
                "different names, or ask for one of them with --stems"
            )
        if names == self.names:
            return False
        self.names = names
        try:
            # Without names of stems two songs can still be told apart.
            check_apart({song.path: [*self.files(song, names or ["stem"]).values()] for song in self.songs})
        except ValueError as error:
            raise UsageError(str(error)) from error
        return True

    def files(self, song: Song, names: Sequence[str] | None = None) -> dict[str, Path]:
        """Return the file that each stem of a song gets."""
        folder = self.options.output / song.folder
        return {
            name: folder
            / fill_in(
                self.options.name_template,
                song=song.name,
                stem=name,
                model=self._model,
                number=number,
                ext=self.encoding.format,
            )
            for number, name in enumerate(self.names if names is None else names, start=1)
        }

    def remove_leftovers(self, songs: Sequence[Song]) -> None:
        """Remove what killed processes left where the files of songs are to be."""
        output = self.options.output
        files = [file for song in songs for file in self.files(song, self.names or ["stem"]).values()]
        for folder in {output, *(file.parent for file in files)}:
            remove_leftovers(output, folder)

    def seconds(self, song: Song) -> float:
        """Return about how long a song is, 0 if it cannot be read."""
        try:
            audio = self._probe(song)
        except FAILURES:
            return 0.0
        return _samples(audio) / audio.sample_rate

    def without_existing(self, songs: Sequence[Song]) -> list[Song]:
        """Leave out, if that was asked for, songs whose stems all exist."""
        if not (self.options.skip_existing and self.names):
            return list(songs)
        waiting: list[Song] = []
        for song in songs:
            files = self.files(song)
            if all(map(os.path.lexists, files.values())):
                self._record(song, "skipped", outputs=files)
            else:
                waiting.append(song)
        return waiting

    def check(self, song: Song) -> None:
        """Raise if a song cannot be read, or its stems cannot be written."""
        self._probe(song)
        files = list(self.files(song).values())
        for file in files or self.files(song, ["stem"]).values():
            check_length(file, self.options.output)
        check_targets(self.options.output, files, existing=self._existing, kept=self._kept)

    def separate(self, song: Song, separators: Sequence[Separator]) -> None:
        """Separate one song and write its stems, block by block."""
        if not self.without_existing([song]):
            return  # Another process was faster.
        self.check(song)
        options, audio, files = self.options, self._probe(song), self.files(song)
        kept = {path for path in files.values() if self._existing == "keep" and os.path.lexists(path)}
        self.console.warnings.clear()  # What was said of the checkpoint belongs to no song.
        begun = time.monotonic()
        tags = read_tags(song.source)
        part = self.part or loudest_part(audio.blocks(), audio.sample_rate)
        first, last = part.samples(audio.sample_rate)
        length = int(max(0, min(last, _samples(audio)) - first))
        with (
            SongProgress(self.console, song.path, len(separators)) as progress,
            writing_together(
                options.output,
                files,
                audio.sample_rate,
                self.encoding,
                existing=self._existing,
                scale=options.clip == "scale",
                finish=lambda path: write_tags(tags, [path]),
            ) as folder,
        ):
            opened = [folder.open(name, audio.channels, length) for name in files]
            stems = separate_song(
                separators,
                audio,
                combination=Combination(options.ensemble, options.weights),
                residual=options.residual is not None,
                part=part,
                report=progress,
            )
            with Behind[torch.Tensor](lambda block: side_by_side(StemFile.write, opened, block)) as write:
                for block in stems:
                    write(block)
        for file in opened:
            if file.clipped and file.path not in kept:
                self.console.warn(
                    f"{file.clipped} values of {file.path} were beyond full scale and are cut off: --clip scale lowers "
                    "all stems, --format wav --bit-depth 32 keeps them"
                )
        if folder.factor < 1:
            self.console.remark(f"{song.path}: all stems are multiplied by {folder.factor:.4f}, to stay in full scale")
        if self.part is None:
            self.console.remark(f"{song.path}: the preview begins at {clock(part.start)}")
        for path in files.values():
            if path not in kept:
                self.console.show(path)
        self._record(
            song,
            "separated",
            outputs=files,
            duration=opened[0].written / opened[0].sample_rate,
            seconds=time.monotonic() - begun,
            start=part.start,
            factor=folder.factor,
        )

    def those_that_succeed(self, songs: Iterable[Song], action: Callable[[Song], object]) -> list[Song]:
        """Do the action for each song, say in one line what failed, and return the other songs."""
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

    def _record(
        self,
        song: Song,
        status: str,
        *,
        outputs: Mapping[str, Path] | None = None,
        duration: float | None = None,
        seconds: float | None = None,
        start: float = 0.0,
        factor: float = 1.0,
        error: str | None = None,
    ) -> None:
        """Print what became of a song, and forget the warnings that belong to it."""
        self.console.record(
            {
                "song": str(song.path),
                "status": status,
                "outputs": {name: str(path) for name, path in (outputs or {}).items()},
                "start": start,
                "duration": duration,
                "seconds": seconds,
                "factor": factor,
                "warnings": [*self.console.warnings],
                "error": error,
            }
        )
        self.console.warnings.clear()


def _samples(audio: AudioFile) -> int:
    """Return how many samples a file has, at most where only reading tells."""
    return audio.pathFilename.stat().st_size * FRAMES_PER_BYTE if audio.length is None else audio.length


def _encoding(options: Options) -> Encoding:
    """Return what files are to be."""
    usual = DEPTHS[options.format]
    depth = options.bit_depth or usual
    if (options.format, depth) not in SUBTYPES:
        remedy = "leave it out" if usual is None else "use 16 or 24"
        raise UsageError(f"--format {options.format} has no --bit-depth {depth}: {remedy}")
    if options.quality is not None and usual is not None:
        raise UsageError(f"--format {options.format} keeps all of the sound and has no --quality: leave it out")
    return Encoding(options.format, depth, options.quality)


def _sources(options: Options, console: Console) -> tuple[list[_Source], list[str]]:
    """Return the checkpoints, and the names of the stems that they are to give; none where no configuration tells."""
    count = len(options.checkpoint)
    if len(options.configuration) not in (0, 1, count):
        raise UsageError(
            f"{count} --checkpoint and {len(options.configuration)} --configuration: pass one for each, or one for all"
        )
    if options.stems is not None and len({*map(safe_name, options.stems)}) < len(options.stems):
        raise UsageError(f"--stems {','.join(options.stems)} names a stem twice: name each once")
    if count == 1 and (options.weights is not None or options.ensemble != "avg_wave"):
        raise UsageError("--ensemble and --weights are for several: give --checkpoint more than once")
    if count > 1 and options.lora is not None:
        raise UsageError("--lora is for one --checkpoint: merge it into its own with `hunterforms convert --lora`")
    if options.weights is not None:
        if len(options.weights) != count:
            raise UsageError(f"{len(options.weights)} --weights for {count} --checkpoint: pass one for each")
        if not options.ensemble.startswith("avg"):
            raise UsageError(f"--ensemble {options.ensemble} has no --weights: use avg_wave or avg_fft")
    configurations: list[Path | None] = [*options.configuration] or [None]
    adapters: Adapters | None = None
    found: list[tuple[Path, Path | Mapping[str, Any] | None, Settings]] = []
    remarks: dict[str, None] = {}
    for checkpoint, configuration in zip(
        options.checkpoint, configurations * (count // len(configurations)), strict=True
    ):
        file, used, content = find_configuration(checkpoint, configuration)
        if options.lora is not None:
            adapters = read_adapters(options.lora, content)
            used = None if used is None else {name: value for name, value in content.items() if name != "lora"}
        settings, warnings = read_settings(content, **options.separation())
        remarks |= dict.fromkeys(warnings)
        found.append((file, used, settings))
    for remark in remarks:
        console.warn(remark)
    names = found[0][2].names if options.stems is None else [*map(safe_name, options.stems)]
    if options.stems is None and any(set(settings.names) != set(names) for _, _, settings in found):
        common = [name for name in names if all(name in settings.names for _, _, settings in found)]
        listed = "; ".join(", ".join(settings.names) or "stems without names" for _, _, settings in found)
        remedy = f"choose with --stems {','.join(common)}" if common else "they have none in common"
        raise UsageError(f"the checkpoints have different stems ({listed}): {remedy}")
    sources: list[_Source] = []
    for file, used, settings in found:
        whole = options.stems is None and names == settings.names
        stems = None if whole else stem_indices(options.stems or names or None, settings.names)
        sources.append(_Source(file, used, settings, stems, adapters))
    return sources, list(names)


def _load(source: _Source, options: Options, device: torch.device) -> Separator:
    whole = source.adapters is not None  # adapters may have been trained on any of the heads
    model = from_checkpoint(
        source.checkpoint,
        source.configuration,
        upstream=options.upstream,
        device="cpu" if whole else device,
        stems=None if whole else source.stems,
    )
    if source.adapters is not None:
        model = source.adapters.merge_into(model).to(device)
    return Separator(model, source.settings, source.stems if whole else None)


def _names_loaded(names: Sequence[str], separators: Sequence[Separator], console: Console) -> Sequence[str]:
    """Return the names of the stems that the models have; numbers where the configurations name none or others."""
    counts = {
        separator.model.num_stems if separator.order is None else len(separator.order)  # type: ignore[attr-defined]
        for separator in separators
    }
    if len(counts) > 1:
        raise UsageError(f"the checkpoints have different numbers of stems, {sorted(counts)}: choose with --stems")
    (count,) = counts
    if len(names) == count:
        return names
    if names:
        console.warn(f"the configuration names {', '.join(names)}, but the model has {count} stems: I number them")
    return [f"stem_{number}" for number in range(1, count + 1)]
