"""Progress of a song: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from hunterFormsBS.console import Console
from hunterFormsBS.printable import say
from hunterFormsBS.songs.signals import end_if_asked

__all__ = ["SongProgress"]

SECONDS_BETWEEN_LINES = 30.0


class SongProgress:
    """Reports progress after each chunk of each of so many models; use it in a with statement."""

    def __init__(self, console: Console, song: object, models: int) -> None:
        self._console = console
        self._song = song
        self._chunks = [(0, 0)] * models
        self._bar: Any = None
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            say(self._song, sys.stderr)
            self._bar = import_module("tqdm").tqdm(unit="chunk")
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, model: int, done: int, total: int) -> None:
        """Report how many chunks of a model are done, and how many it has as far as is known."""
        end_if_asked()
        self._chunks[model] = (done, total)
        done = sum(done for done, _ in self._chunks)
        # Models that have not begun have about as many chunks as those that have.
        known = [total for _, total in self._chunks if total]
        total = max(done, round(sum(known) / len(known) * len(self._chunks)))
        now = time.monotonic()
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
        elif not self._console.quiet and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            left = (now - self._begun) * (total - done) / done
            self._console.remark(f"{self._song}: {done} of {total} chunks, about {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
