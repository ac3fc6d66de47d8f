"""Separate one upload into stems and a picture of the masks, with the functions of `hunterFormsBS.songs`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.console import Console, one_line
from hunterFormsBS.failures import FAILURES
from hunterFormsBS.listening.offers import Offer
from hunterFormsBS.listening.work import Song
from hunterFormsBS.parametersSeparation import KeywordsSeparation
from hunterFormsBS.plot import plot_band_masks
from hunterFormsBS.songs.graph import Graph, Separator
from hunterFormsBS.songs.names import key_of
from hunterFormsBS.songs.rates import resample
from hunterFormsBS.songs.reading import AudioFile, probe_audio
from hunterFormsBS.songs.separating import separate_song
from hunterFormsBS.songs.settings import find_configuration, read_settings
from hunterFormsBS.songs.tags import read_tags, write_tags
from hunterFormsBS.songs.threads import Behind, side_by_side
from hunterFormsBS.songs.writing import Level, StemFile, writing_together

__all__ = ["MIXTURE", "Separating"]

MIXTURE = "mixture"
SECONDS_OF_MASKS = 10


class _Loaded(NamedTuple):
    """The model of the last song, with the warnings from loading it."""

    offer: Offer
    changed: float | None
    model: BandSplitRotator
    configuration: Mapping[str, Any]
    warnings: list[str]


class Separating:
    """Separates one song at a time. The last model stays loaded.

    Parameters
    ----------
    device : torch.device
        Where models run.
    max_minutes : float
        Longer songs are refused: a browser holds all stems in memory.
    console : Console
        Collects the warnings.
    """

    def __init__(self, device: torch.device, max_minutes: float, console: Console) -> None:
        self._device = device
        self._max_minutes = max_minutes
        self._console = console
        self._loaded: _Loaded | None = None

    def __call__(self, song: Song) -> None:
        """Separate a song into its folder, and store the warnings with it."""
        self._console.warnings.clear()
        with self._console.showing_warnings():
            warnings.simplefilter("always", UserWarning)  # of each song, even if the sentence is the same
            try:
                self._separate(song)
            finally:
                song.warnings = list(dict.fromkeys(self._console.warnings))

    def _separate(self, song: Song) -> None:
        song.say("reading the song")
        audio = probe_audio(song.upload, name=song.wish.name, downmix=True)
        self._check_length(audio, audio.length or 0)
        song.say("fetching the model, unless it is here" if song.wish.offer.fetched else "loading the model")
        model, configuration = self._load(song.wish.offer)
        overlap = song.wish.num_overlap
        given: KeywordsSeparation = {} if overlap is None else {"num_overlap": overlap}
        settings, remarks = read_settings(configuration, **given)
        for remark in remarks:
            self._console.warn(remark)
        names = names_for(settings.names, model.num_stems)
        files = {name: song.folder / f"{name}.{song.wish.encoding.format}" for name in (MIXTURE, *names)}
        tags = read_tags(song.upload)
        with writing_together(
            song.folder,
            files,
            audio.sample_rate,
            song.wish.encoding,
            level=Level(at_most=0.0) if song.wish.encoding.cuts_off else Level(),
            finish=lambda path: write_tags(tags, [path]),
        ) as folder:
            mixture, *stems = folder.open(audio.channels)
            for block in self._blocks(song, audio):
                mixture.write(block)
            song.say("separating")
            blocks = separate_song(
                Graph.of([Separator(model, settings)]),
                audio,
                report=lambda _model, done, total: song.report(done, total),
            )
            with Behind[Tensor](lambda block: side_by_side(StemFile.write, stems, block)) as write:
                for block in blocks:
                    write(block)
            song.message = "writing the files"
        if folder.factor < 1:
            self._console.warn(f"all files are multiplied by {folder.factor:.4f}, to stay in full scale")
        try:
            masks = song.folder / "masks.png"
            draw_masks(masks, model, excerpt(audio, settings.sample_rate), names, settings.sample_rate)
            song.pictures = {"masks": masks}
        except FAILURES as error:
            self._console.warn(f"there is no picture of the masks: {one_line(error)}")
        song.tracks = files

    def _load(self, offer: Offer) -> tuple[BandSplitRotator, Mapping[str, Any]]:
        """Return the model of an offer and its configuration. The loaded model is reused if it is the same."""
        changed = offer.checkpoint.stat().st_mtime if offer.checkpoint.is_file() else None
        if self._loaded is None or (self._loaded.offer, self._loaded.changed) != (offer, changed):
            self._loaded = None  # never two at a time
            checkpoint, configuration, content = find_configuration(offer.checkpoint, offer.configuration)
            model = from_checkpoint(checkpoint, configuration, device=self._device)
            self._loaded = _Loaded(offer, changed, model, content, [*self._console.warnings])
        else:
            self._console.warnings.extend(self._loaded.warnings)
        return self._loaded.model, self._loaded.configuration

    def _blocks(self, song: Song, audio: AudioFile) -> Iterator[Tensor]:
        """Yield the blocks of the song; raise ValueError once it is too long."""
        length = 0
        for block in audio.blocks():
            song.say("reading the song")
            length += block.shape[-1]
            self._check_length(audio, length)
            yield block

    def _check_length(self, audio: AudioFile, length: int) -> None:
        if length > 60 * self._max_minutes * audio.sample_rate:
            raise ValueError(
                f"{audio.name} is longer than {self._max_minutes:g} minutes: start the program with --max-minutes, "
                "or use the command line, which has no limit"
            )


def names_for(names: Sequence[str], count: int) -> list[str]:
    """Return the names if they are distinct and as many as the stems, else `stem_1`, `stem_2`, ..."""
    distinct = {key_of(name) for name in (*names, MIXTURE, "")}
    if len(names) == count and len(distinct) == count + 2:
        return list(names)
    return [f"stem_{number}" for number in range(1, count + 1)]


def excerpt(audio: AudioFile, sample_rate: int) -> Tensor:
    """Return the first seconds of a song, `(s, t)`, at another sample rate."""
    wanted = SECONDS_OF_MASKS * audio.sample_rate
    blocks: list[Tensor] = []
    for block in audio.blocks():
        blocks.append(block)
        wanted -= block.shape[-1]
        if wanted <= 0:
            break
    return resample(
        torch.cat(blocks, dim=-1)[:, : SECONDS_OF_MASKS * audio.sample_rate], audio.sample_rate, sample_rate
    )


def draw_masks(
    pathFilename: Path, model: BandSplitRotator, audio: Tensor, names: Sequence[str], sample_rate: int
) -> None:
    """Save the picture of the mask of each stem."""
    audio = audio.expand(2, -1) if model.stereo else audio.mean(0, keepdim=True)
    figure: Any = Figure(figsize=(2 + 3.2 * len(names), 4), layout="constrained")
    plot_band_masks(model, audio, names=names, sample_rate=sample_rate, figure=figure)
    figure.savefig(pathFilename, dpi=90)
