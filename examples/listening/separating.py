"""One separation at a time in the background: from a file to stems and pictures in a temporary folder."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
import soxr
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, read_configuration
from hunterFormsBS.plot import plot_band_masks, plot_separation
from hunterFormsBS.separation import separate

# What bad files and settings raise. Anything else is a bug, and shows its traceback.
FAILURES = (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError, soundfile.SoundFileError)
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
        File, or what else `from_checkpoint` takes.
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
            progress.state, progress.message = "failed", " ".join(str(error).split())[:500] or type(error).__name__
        finally:
            request.song.unlink(missing_ok=True)

    def _separate(self, request: Request, progress: Progress) -> None:
        configuration = find_configuration(request.checkpoint, request.configuration)
        settings = Settings.of(configuration)
        progress.message = "reading the song"
        mixture = read_song(request.song, settings.sample_rate, self.max_minutes)
        progress.message = "loading the model"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on what no file determines
            model = from_checkpoint(request.checkpoint, request.configuration or None, device=self.device)
        names = settings.names_for(model.num_stems)

        def report(done: int, total: int) -> None:
            if self._stop.is_set():
                raise StoppedError
            progress.message, progress.done, progress.total = "separating", done, total

        overlap = request.num_overlap or settings.num_overlap
        stems = separate(model, mixture, chunk_size=settings.chunk_size, num_overlap=overlap, progress=report)
        progress.message = "drawing"
        folder = self.folder / progress.identity
        folder.mkdir(parents=True)
        for name, audio in (("mixture", mixture.expand(stems.shape[1], -1)), *zip(names, stems, strict=True)):
            soundfile.write(folder / f"{name}.wav", audio.T.numpy(), settings.sample_rate, subtype="FLOAT")
        draw(folder, model, mixture, stems, names, settings.sample_rate)
        progress.tracks, progress.pictures = ["mixture", *names], ["spectrograms", "masks"]


@dataclass(frozen=True)
class Settings:
    """What a configuration says about separating."""

    sample_rate: int
    chunk_size: int
    num_overlap: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, configuration: Mapping[str, Any]) -> Settings:
        """Take them from the sections of a configuration, as the command line does."""
        audio, inference, training = (configuration.get(name) or {} for name in ("audio", "inference", "training"))
        target, instruments = training.get("target_instrument"), training.get("instruments")
        return cls(
            sample_rate=int(audio.get("sample_rate") or 44100),
            chunk_size=int(inference.get("chunk_size") or audio.get("chunk_size") or 352800),
            num_overlap=int(inference.get("num_overlap") or 2),
            names=(str(target),) if target else tuple(map(str, instruments or ())),
        )

    def names_for(self, count: int) -> list[str]:
        """Return names for files: those of the configuration if it has as many, and each once; else numbers."""
        names = [re.sub(r"[^\w .()+-]", "_", name).strip(". ") for name in self.names]
        distinct = {name.casefold() for name in (*names, "mixture", "")}
        if len(names) == count and len(distinct) == count + 2:
            return names
        return [f"stem {number}" for number in range(1, count + 1)]


def find_configuration(checkpoint: str, configuration: str) -> Mapping[str, Any]:
    """Return the configuration file, or else the one within the checkpoint, or else nothing."""
    if configuration:
        return read_configuration(configuration)
    try:
        content = torch.load(checkpoint, "meta", weights_only=True)
    except Exception:  # noqa: BLE001  # `from_checkpoint` says what is wrong with the file, if anything is
        return {}
    inner = content.get("configuration") if isinstance(content, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def read_song(path: Path, sample_rate: int, max_minutes: float) -> Tensor:
    """Return `(s, t)` at a sample rate; one channel or two."""
    try:
        properties = soundfile.info(path)
    except soundfile.SoundFileError as error:
        message = "This is not audio that libsndfile reads: WAV, FLAC, mp3, Ogg, AIFF and the like"
        raise ValueError(message) from error
    if properties.duration > 60 * max_minutes:
        length = f"The song has {properties.duration / 60:.1f} minutes, and {max_minutes:g} are the limit"
        raise ValueError(f"{length}: --max-minutes allows more, and the command line has no limit")
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != sample_rate:
        audio = soxr.resample(audio, rate, sample_rate)
    return torch.from_numpy(audio.T[:2].copy())


def draw(
    folder: Path, model: BandSplitRotator, mixture: Tensor, stems: Tensor, names: Sequence[str], sample_rate: int
) -> None:
    """Draw spectrograms of everything, and what the masks do in each band in the first seconds."""
    spectrograms = Figure(figsize=(3.2 * (1 + len(names)), 3.6), layout="constrained")
    plot_separation(mixture, stems, names=names, sample_rate=sample_rate, figure=spectrograms)
    spectrograms.savefig(folder / "spectrograms.png", dpi=90)
    excerpt = mixture[:, : SECONDS_OF_MASKS * sample_rate]
    excerpt = excerpt.expand(2, -1) if model.stereo else excerpt.mean(0, keepdim=True)
    masks = Figure(figsize=(2 + 3.2 * len(names), 4), layout="constrained")
    plot_band_masks(model, excerpt, names=names, sample_rate=sample_rate, figure=masks)
    masks.savefig(folder / "masks.png", dpi=90)
