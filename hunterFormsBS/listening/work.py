"""The queue of uploaded songs, the worker thread that separates them, and their owners."""

from __future__ import annotations

import secrets
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from hunterFormsBS.console import one_line
from hunterFormsBS.failures import FAILURES, UsageError
from hunterFormsBS.listening.offers import Offer
from hunterFormsBS.printable import printable
from hunterFormsBS.songs.encodings import Encoding
from hunterFormsBS.songs.writing import FULL

__all__ = ["FULL_DISK", "FullError", "Limits", "Song", "StoppedError", "Wish", "Work"]

State = Literal["waiting", "working", "done", "failed", "stopped"]

FULL_DISK = "The disk is full: make room on it, or choose a smaller format"
SECONDS_BETWEEN_LOOKS = 60.0
"""Interval at which expired results are removed."""


class FullError(Exception):
    """The queue or the number of uploads is at its limit."""


class StoppedError(Exception):
    """The user stopped the song."""


class Limits(NamedTuple):
    """Limits of the queue and of storage.

    Parameters
    ----------
    uploads : int
        Uploads at a time.
    waiting : int
        Songs in the queue, including uploads in progress and the current song.
    kept : int
        Finished songs kept per owner; the oldest are removed first.
    hours : float
        How long they are kept.
    """

    uploads: int = 3
    waiting: int = 10
    kept: int = 10
    hours: float = 24.0


class Wish(NamedTuple):
    """What the user asked for.

    Parameters
    ----------
    name : str
        Of the uploaded file.
    offer : Offer
    num_overlap : int | None
        None: as the configuration says.
    encoding : Encoding
        Of the stems.
    """

    name: str
    offer: Offer
    num_overlap: int | None = None
    encoding: Encoding = Encoding()


@dataclass(eq=False)
class Song:
    """An uploaded song, its progress and its results.

    Parameters
    ----------
    owner : str
        Identity of the browser.
    wish : Wish
    upload : Path
        The uploaded file, which is removed at the end.
    folder : Path
        For the results.
    """

    owner: str
    wish: Wish
    upload: Path
    folder: Path
    identity: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: State = "waiting"
    message: str = ""
    done: int = 0
    total: int = 0
    tracks: dict[str, Path] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    ended: float = 0.0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _begun: float = 0.0

    @property
    def is_ended(self) -> bool:
        """Whether the song is done, failed or stopped."""
        return self.state in ("done", "failed", "stopped")

    def say(self, message: str) -> None:
        """Set the progress message.

        Raises
        ------
        StoppedError
            If the song is to be stopped.
        """
        if self._stopping.is_set():
            raise StoppedError
        self.message = message

    def report(self, done: int, total: int) -> None:
        """Set the number of finished chunks; raises StoppedError as `say` does."""
        self.say("separating")
        self._begun = self._begun or time.monotonic()
        self.done, self.total = done, total

    def ask_to_stop(self) -> None:
        """Make the next `say` or `report` raise StoppedError."""
        self._stopping.set()

    def status(self, before: int) -> dict[str, object]:
        """Return the song for the API; `before` is the number of songs that come first."""
        left = None
        if self.state == "working" and 0 < self.done < self.total:
            left = round((time.monotonic() - self._begun) * (self.total - self.done) / self.done, 1)
        stopping = self._stopping.is_set() and not self.is_ended
        return {
            "id": self.identity,
            "name": self.wish.name,
            "model": self.wish.offer.name,
            "format": self.wish.encoding.format,
            "state": self.state,
            "message": "stopping" if stopping else self.message,
            "before": before if self.state == "waiting" else 0,
            "done": self.done,
            "total": self.total,
            "seconds_left": left,
            "tracks": list(self.tracks),
            "pictures": list(self.pictures),
            "warnings": list(self.warnings),
        }


class Work:
    """The songs of all owners, and the thread that separates them one after another.

    Parameters
    ----------
    folder : Path
        For uploads and results.
    separate : Callable[[Song], object]
        Separates a song into its folder, and sets its tracks.
    limits : Limits
    """

    def __init__(self, folder: Path, separate: Callable[[Song], object], limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self._separate = separate
        self._uploads = 0
        self._songs: list[Song] = []  # in the order in which they came
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="separating", daemon=True)
        self._thread.start()

    @property
    def is_closing(self) -> bool:
        """Whether the program is ending."""
        return self._closing

    @contextmanager
    def uploading(self) -> Generator[Path]:
        """Reserve a slot in the queue, and yield the path for the upload. The file is removed unless it was added.

        Raises
        ------
        FullError
            If a limit is reached.
        """
        with self._changed:
            waiting = self._uploads + sum(not song.is_ended for song in self._songs)
            if self._uploads >= self.limits.uploads or waiting >= self.limits.waiting:
                raise FullError
            self._uploads += 1
        upload = self.folder / secrets.token_urlsafe(16)
        try:
            yield upload
        finally:
            with self._changed:
                self._uploads -= 1
                if all(song.upload != upload for song in self._songs):
                    upload.unlink(missing_ok=True)

    def add(self, owner: str, wish: Wish, upload: Path) -> Song:
        """Queue an uploaded song."""
        song = Song(owner, wish, upload, upload.with_name(f"{upload.name}-stems"))
        with self._changed:
            self._songs.append(song)
            self._changed.notify()
        return song

    def status(self, owner: str) -> list[dict[str, object]]:
        """Return the songs of an owner for the API."""
        with self._changed:
            waiting = [song for song in self._songs if not song.is_ended]
            return [
                song.status(waiting.index(song) if song in waiting else 0)
                for song in self._songs
                if song.owner == owner
            ]

    def find(self, owner: str, identity: str) -> Song | None:
        """Return a song of an owner, None if there is no such song."""
        with self._changed:
            return next((song for song in self._songs if (song.owner, song.identity) == (owner, identity)), None)

    def stop(self, song: Song) -> None:
        """Stop a song: at the next chunk if it is being separated, at once if it waits."""
        with self._changed:
            song.ask_to_stop()
            if song.state == "waiting":
                self._end(song, "stopped")

    def remove(self, song: Song) -> None:
        """Delete a song and its results; a song that is being separated is only stopped."""
        self.stop(song)
        with self._changed:
            if song.is_ended:
                self._forget(song)

    def close(self, seconds: float) -> bool:
        """Stop all songs, wait some seconds for the worker thread, and return whether it has ended."""
        with self._changed:
            self._closing = True
            for song in self._songs:
                song.ask_to_stop()
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (song := self._next()) is not None:
            state: State = "failed"
            try:
                self._separate(song)
                state, song.message = "done", ""
            except StoppedError:
                state, song.message = "stopped", ""
            except (*FAILURES, UsageError) as error:
                song.message = self._sentence(error)
            except Exception:  # noqa: BLE001  # a bug, and the songs after this one are not to wait for ever
                traceback.print_exc(file=sys.stderr)
                song.message = "Something went wrong: the terminal of the program says what"
            with self._changed:
                self._end(song, state)

    def _next(self) -> Song | None:
        """Wait for the next song, and remove expired ones meanwhile; None once the queue is closed."""
        with self._changed:
            while not self._closing:
                self._forget_old()
                for song in self._songs:
                    if song.state == "waiting":
                        song.state = "working"
                        return song
                self._changed.wait(SECONDS_BETWEEN_LOOKS)
        return None

    def _end(self, song: Song, state: State) -> None:
        song.ended = time.monotonic()
        song.state = state
        song.upload.unlink(missing_ok=True)
        if state != "done":
            shutil.rmtree(song.folder, ignore_errors=True)
        self._forget_old()

    def _forget_old(self) -> None:
        """Remove finished songs beyond the limits of number and age."""
        kept: Counter[str] = Counter()
        oldest = time.monotonic() - 3600 * self.limits.hours
        for song in reversed([song for song in self._songs if song.is_ended]):
            kept[song.owner] += 1
            if kept[song.owner] > self.limits.kept or song.ended < oldest:
                self._forget(song)

    def _forget(self, song: Song) -> None:
        self._songs.remove(song)
        shutil.rmtree(song.folder, ignore_errors=True)

    def _sentence(self, error: BaseException) -> str:
        """Return the message for an error, without paths of temporary files."""
        if isinstance(error, OSError) and error.errno in FULL:
            return FULL_DISK
        return printable(one_line(error).replace(f"{self.folder}/", ""), 500)
