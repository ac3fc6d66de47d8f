"""Songs on their way from an upload to stems: a queue that one thread works off, and what is kept for whom."""

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
from hunterFormsBS.listening.offers import Offer
from hunterFormsBS.printable import printable
from hunterFormsBS.songs.batch import FAILURES
from hunterFormsBS.songs.commandLine import UsageError
from hunterFormsBS.songs.writing import FULL, Encoding

__all__ = ["FULL_DISK", "FullError", "Limits", "Song", "StoppedError", "Wish", "Work"]

State = Literal["waiting", "working", "done", "failed", "stopped"]

FULL_DISK = "The disk is full: make room on it, or choose a smaller format"
SECONDS_BETWEEN_LOOKS = 60.0
"""How often results are looked at that may be too old."""


class FullError(Exception):
    """As many songs wait as may."""


class StoppedError(Exception):
    """Somebody pressed the button."""


class Limits(NamedTuple):
    """How much is taken and kept.

    Parameters
    ----------
    uploads : int
        Songs on their way in at a time.
    waiting : int
        Songs in the queue, those on their way in and the one that is being separated among them.
    kept : int
        Songs that are kept for each browser; the oldest go first.
    hours : float
        How long they are kept.
    """

    uploads: int = 3
    waiting: int = 10
    kept: int = 10
    hours: float = 24.0


class Wish(NamedTuple):
    """What is to be done with a song.

    Parameters
    ----------
    name : str
        What its file was called.
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
    """A song that a browser sent, how far it is, and what came of it."""

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
        """Whether nothing will become of it any more."""
        return self.state in ("done", "failed", "stopped")

    def say(self, message: str) -> None:
        """Show what is being done.

        Raises
        ------
        StoppedError
            If the song is to be stopped.
        """
        if self._stopping.is_set():
            raise StoppedError
        self.message = message

    def report(self, done: int, total: int) -> None:
        """Show how many chunks are done; raise as `say`."""
        self.say("separating")
        self._begun = self._begun or time.monotonic()
        self.done, self.total = done, total

    def ask_to_stop(self) -> None:
        """Have the next `say` or `report` raise."""
        self._stopping.set()

    def status(self, place: int) -> dict[str, object]:
        """Return what the page shows; `place` counts the songs before this one."""
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
            "before": place if self.state == "waiting" else 0,
            "done": self.done,
            "total": self.total,
            "seconds_left": left,
            "tracks": list(self.tracks),
            "pictures": list(self.pictures),
            "warnings": list(self.warnings),
        }


class Work:
    """All songs of all browsers, and the thread that separates them one after another.

    Parameters
    ----------
    folder : Path
        For uploads and results.
    separate : Callable[[Song], object]
        Separates a song into its folder and fills in what came of it.
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
        """Hold a place in the queue for an upload, and return where to write it; the file goes unless it was added.

        Raises
        ------
        FullError
            If as many songs are on their way in, or wait, as may. Nothing was written then.
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
        """Put a song that was uploaded at the end of the queue."""
        song = Song(owner, wish, upload, upload.with_name(f"{upload.name}-stems"))
        with self._changed:
            self._songs.append(song)
            self._changed.notify()
        return song

    def status(self, owner: str) -> list[dict[str, object]]:
        """Return what the page shows of the songs of one browser."""
        with self._changed:
            waiting = [song for song in self._songs if not song.is_ended]
            return [
                song.status(waiting.index(song) if song in waiting else 0)
                for song in self._songs
                if song.owner == owner
            ]

    def find(self, owner: str, identity: str) -> Song | None:
        """Return a song of a browser."""
        with self._changed:
            return next((song for song in self._songs if (song.owner, song.identity) == (owner, identity)), None)

    def stop(self, song: Song) -> None:
        """End a separation at its next chunk, or take a song out of the queue."""
        with self._changed:
            song.ask_to_stop()
            if song.state == "waiting":
                self._end(song, "stopped")

    def remove(self, song: Song) -> None:
        """Forget a song, and delete what came of it; one that is being separated is stopped first."""
        self.stop(song)
        with self._changed:
            if song.is_ended:
                self._forget(song)

    def close(self, seconds: float) -> None:
        """Stop everything, and wait for that."""
        with self._changed:
            self._closing = True
            for song in self._songs:
                song.ask_to_stop()
            self._changed.notify()
        self._thread.join(seconds)

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
        """Wait for a song, and forget old ones meanwhile; None at the end of the program."""
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
        """Keep of what is done the newest songs of each browser, for some hours."""
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
        """Return what to say about an error, without the names of temporary files."""
        if isinstance(error, OSError) and error.errno in FULL:
            return FULL_DISK
        return printable(one_line(error).replace(f"{self.folder}/", ""), 500)
