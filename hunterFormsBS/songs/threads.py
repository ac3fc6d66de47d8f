"""Threads for conversions and encoders of several stems, and a writer thread behind the separation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["Behind", "side_by_side"]

T = TypeVar("T")
R = TypeVar("R")

WORKERS = min(8, os.cpu_count() or 1)
WAITING = 1
"""Blocks that wait to be written, at most."""


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS, thread_name_prefix="hunterFormsBS")


def side_by_side(function: Callable[..., R], *arguments: Iterable[object]) -> list[R]:
    """Map a function over arguments in threads. The first error is raised once all have ended."""
    futures = [_pool().submit(function, *each) for each in zip(*arguments, strict=True)]
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error
    return [future.result() for future in futures]


class Behind(Generic[T]):
    """Calls a function in a thread of its own with each queued item, in order; use it in a with statement.

    The with statement ends once the queue is empty. An error of the function is raised at the next call or at the end,
    and later items are dropped. After an error of the with statement the queue is dropped.
    """

    def __init__(self, function: Callable[[T], object]) -> None:
        self._function = function
        self._queue: Queue[T | None] = Queue(WAITING)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __call__(self, item: T) -> None:
        """Queue `item` for the thread; blocks while the queue is full."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._dropping = kind is not None
        try:
            self._queue.put(None)
            self._thread.join()
        except BaseException:
            # Interrupted while waiting: writing must have ended before files are removed.
            self._dropping = True
            self._queue.put(None)
            self._thread.join()
            raise
        if kind is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._dropping or self._error is not None:
                continue
            try:
                self._function(item)
            except BaseException as error:  # noqa: BLE001  # raised in the thread that gave the item
                self._error = error
