"""Ctrl-C, the end of a terminal, the end of a job: they end the program once, and never in the middle of a rename."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")

NUMBERS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
"""Signals that ask a program to end. Clusters send SIGUSR1 or SIGUSR2 some time before they end a job. Windows knows
SIGINT, SIGTERM and SIGBREAK, other systems all but the last."""

_asked: list[int] = []
"""The signal that asked this program to end."""

_waiting: list[Waiting] = []
"""Who holds signals back, the innermost last."""


@contextmanager
def ending_on_signals() -> Generator[None]:
    """Turn the first signal that asks the program to end into an exception, and ignore all later ones.

    SIGINT raises `KeyboardInterrupt`, the others `SystemExit` with what shells report, 128 and the signal's number. So
    what is being written is removed, and no second signal interrupts that before the program has ended. Signals that
    the program was started to ignore, for example by nohup, stay ignored. Outside the main thread this does nothing.
    """
    if not _handles_signals():
        yield
        return

    previous = {number: signal.getsignal(number) for number in NUMBERS}
    taken = {number: handler for number, handler in previous.items() if handler not in (None, signal.SIG_IGN)}
    for number in taken:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, signal.SIG_IGN if _asked else handler)
        _asked.clear()


def _end(number: int, _frame: FrameType | None) -> None:
    if _waiting:
        _waiting[-1].received.append(number)
    elif not _asked:
        _asked.append(number)
        end_if_asked()


def end_if_asked() -> None:
    """Raise the exception of an earlier signal again, which a destructor swallowed."""
    if _asked and _asked[0] == signal.SIGINT:
        raise KeyboardInterrupt
    if _asked:
        sys.exit(128 + _asked[0])


class Waiting:
    """Signals that ask the program to end and that Python handles, received while they have to wait."""

    def __init__(self) -> None:
        self.received: list[int] = []
        """Their numbers, in order."""
        self._handlers: dict[int, Any] = {}

    def begin(self) -> None:
        """Hold signals back from here on."""
        if not _handles_signals():
            return
        _waiting.append(self)
        for number in NUMBERS:
            handler = signal.getsignal(number)
            if callable(handler) and handler is not _end:  # Setting a handler takes as long as reading a header.
                self._handlers[number] = handler
                signal.signal(number, _end)

    def end(self) -> None:
        """Restore the handlers, and call that of the first signal that has waited."""
        if self not in _waiting:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        _waiting.remove(self)
        if self.received:
            first, self.received[:] = self.received[0], []
            signal.raise_signal(first)

    @contextmanager
    def interruptible(self) -> Generator[None]:
        """Hold no signal back within this with statement."""
        self.end()
        try:
            yield
        finally:
            self.begin()


@contextmanager
def uninterrupted() -> Generator[Waiting]:
    """Hold signals that ask the program to end back until the end of the with statement."""
    waiting = Waiting()
    waiting.begin()
    try:
        yield waiting
    finally:
        waiting.end()


def ignore_signals() -> None:
    """Let the process that started this one end it: terminals and clusters signal both."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _handles_signals() -> bool:
    """Tell whether this is the main thread, where Python runs handlers of signals; no other thread can set them."""
    return threading.current_thread() is threading.main_thread()
