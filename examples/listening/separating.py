"""One separation at a time in the background: from a file to stems and pictures in a temporary folder."""

from __future__ import annotations

import secrets
import shutil
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import soundfile
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.console import one_line
from hunterFormsBS.parametersSeparation import KeywordsSeparation
from hunterFormsBS.plot import plot_band_masks, plot_separation
from hunterFormsBS.songs.commandLine import UsageError
from hunterFormsBS.songs.rates import resample
from hunterFormsBS.songs.reading import AudioFile, probe_audio
from hunterFormsBS.songs.separating import Separator as Separation
from hunterFormsBS.songs.separating import separate_song
from hunterFormsBS.songs.settings import find_configuration, read_settings

# What bad files and settings raise. Anything else is a bug, and shows its traceback.
FAILURES = (
    ImportError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    UsageError,
    ValueError,
    soundfile.SoundFileError,
)
SECONDS_OF_MASKS = 10


class BusyError(Exception):
    """Something is being separated."""


class StoppedError(Exception):
    """Somebody pressed the button."""


@dataclass(frozen=True)
class Request:
    """What is to be separated, and how.

    Parameters
    ----------
    song : Path
        The uploaded file, which is deleted in the end.
    name : str
        What the file was called.
    checkpoint : str
        File, name of the catalogue, or `hub:OWNER/REPOSITORY/FILE`.
    configuration : str
        File; empty for none.
    num_overlap : int, optional
        As the configuration says unless given.
    """

    song: Path
    name: str
    checkpoint: str
    configuration: str = ""
    num_overlap: int | None = None


@dataclass
class Progress:
    """What the page shows: how far the work is, and what came of it."""

    identity: str = ""
    state: str = "idle"  # idle, working, done, failed or stopped
    message: str = ""
    done: int = 0
    total: int = 0
    song: str = ""
    tracks: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


class Separator:
    """Separates in a thread, one song at a time. A second request is refused until the first is done.

    Parameters
    ----------
    folder : Path
        For the results. Those of a song are deleted when the next one begins.
    device : str
        Where the model runs.
    max_minutes : float
        Longer songs are refused: a browser holds all stems in memory.
    """

    def __init__(self, folder: Path, device: str, max_minutes: float) -> None:
        self.folder = folder
        self.device = device
        self.max_minutes = max_minutes
        self.progress = Progress()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def is_busy(self) -> bool:
        """Return whether a song is being separated."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, request: Request) -> str:
        """Begin, and return the name of the work. Raises `BusyError` unless the previous song is done."""
        with self._lock:
            if self.is_busy():
                raise BusyError
            if self.progress.identity:
                shutil.rmtree(self.folder / self.progress.identity, ignore_errors=True)
            self.progress = Progress(secrets.token_hex(8), "working", "waiting", song=request.name)
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, args=(request,), daemon=True)
            self._thread.start()
            return self.progress.identity

    def stop(self, seconds: float | None = None) -> None:
        """End the separation at the next chunk, and wait for that if asked to."""
        self._stop.set()
        if self._thread is not None and seconds is not None:
            self._thread.join(seconds)

    def file(self, identity: str, name: str) -> Path | None:
        """Return a result, or None for anything that is not one."""
        progress = self.progress
        known = [f"{track}.wav" for track in progress.tracks] + [f"{picture}.png" for picture in progress.pictures]
        return self.folder / identity / name if identity == progress.identity and name in known else None

    def _run(self, request: Request) -> None:
        progress = self.progress
        try:
            self._separate(request, progress)
            progress.state, progress.message = "done", ""
        except StoppedError:
            progress.state, progress.message = "stopped", "stopped"
        except FAILURES as error:
            progress.state, progress.message = "failed", one_line(error)[:500]
        finally:
            request.song.unlink(missing_ok=True)

    def _separate(self, request: Request, progress: Progress) -> None:
        checkpoint, configuration, content = find_configuration(
            Path(request.checkpoint), Path(request.configuration) if request.configuration else None
        )
        given: KeywordsSeparation = {} if request.num_overlap is None else {"num_overlap": request.num_overlap}
        settings, _ = read_settings(content, **given)
        progress.message = "reading the song"
        audio = probe_audio(request.song, name=request.name, downmix=True)
        mixture = read_song(audio, self.max_minutes)
        progress.message = "loading the model"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on what no file determines
            model = from_checkpoint(checkpoint, configuration, device=self.device)
        names = names_for(settings.names, model.num_stems)

        def report(_model: int, done: int, total: int) -> None:
            if self._stop.is_set():
                raise StoppedError
            progress.message, progress.done, progress.total = "separating", done, total

        stems = torch.cat(list(separate_song([Separation(model, settings)], audio, report=report)), dim=-1)
        progress.message = "drawing"
        folder = self.folder / progress.identity
        folder.mkdir(parents=True)
        for name, sound in (("mixture", mixture), *zip(names, stems, strict=True)):
            soundfile.write(folder / f"{name}.wav", sound.T.numpy(), audio.sample_rate, subtype="FLOAT")
        draw_spectrograms(folder, mixture, stems, names, audio.sample_rate)
        excerpt = resample(mixture[:, : SECONDS_OF_MASKS * audio.sample_rate], audio.sample_rate, settings.sample_rate)
        draw_masks(folder, model, excerpt, names, settings.sample_rate)
        progress.tracks, progress.pictures = ["mixture", *names], ["spectrograms", "masks"]


def names_for(names: Sequence[str], count: int) -> list[str]:
    """Return the names of the stems if there are as many, and each once; else numbers."""
    distinct = {name.casefold() for name in (*names, "mixture", "")}
    if len(names) == count and len(distinct) == count + 2:
        return list(names)
    return [f"stem_{number}" for number in range(1, count + 1)]


def read_song(audio: AudioFile, max_minutes: float) -> Tensor:
    """Return a whole song, `(s, t)`, unless it is too long."""
    blocks: list[Tensor] = []
    left = 60 * max_minutes * audio.sample_rate
    for block in audio.blocks():
        left -= block.shape[-1]
        if left < 0:
            message = f"The song is longer than {max_minutes:g} minutes: --max-minutes allows more"
            raise ValueError(f"{message}, and the command line has no limit")
        blocks.append(block)
    return torch.cat(blocks, dim=-1)


def draw_spectrograms(folder: Path, mixture: Tensor, stems: Tensor, names: Sequence[str], sample_rate: int) -> None:
    """Draw spectrograms of everything."""
    figure = Figure(figsize=(3.2 * (1 + len(names)), 3.6), layout="constrained")
    plot_separation(mixture, stems, names=names, sample_rate=sample_rate, figure=figure)
    figure.savefig(folder / "spectrograms.png", dpi=90)


def draw_masks(folder: Path, model: BandSplitRotator, audio: Tensor, names: Sequence[str], sample_rate: int) -> None:
    """Draw what the masks do in each band."""
    audio = audio.expand(2, -1) if model.stereo else audio.mean(0, keepdim=True)
    figure = Figure(figsize=(2 + 3.2 * len(names), 4), layout="constrained")
    plot_band_masks(model, audio, names=names, sample_rate=sample_rate, figure=figure)
    figure.savefig(folder / "masks.png", dpi=90)
