"""Ctrl-C, the end of a terminal, the end of a job: they end the program once, and never in the middle of a rename."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

NUMBERS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if name in signal.Signals.__members__
)
"""Signals that ask a program to end; SIGHUP is unknown to Windows, SIGBREAK to the others."""

_asked: list[int] = []
"""The signal that asked this program to end."""


@contextmanager
def ending_on_signals() -> Generator[None]:
    """Turn the first signal that asks the program to end into an exception, and ignore all later ones.

    SIGINT raises `KeyboardInterrupt`, the others `SystemExit` with what shells report, 128 and the signal's number. So
    what is being written is removed, and a second signal does not interrupt that, nor anything until the program has
    ended. Signals that the program was started to ignore, as by nohup, stay ignored. Outside of the main thread this
    does nothing.
    """
    if not _handles_signals():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        if not _asked:
            _asked.append(number)
            end_if_asked()

    previous = {number: signal.getsignal(number) for number in NUMBERS}
    taken = {number: handler for number, handler in previous.items() if handler not in (None, signal.SIG_IGN)}
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, signal.SIG_IGN if _asked else handler)
        _asked.clear()


def end_if_asked() -> None:
    """Raise again what an earlier signal raised and a destructor swallowed."""
    if _asked and _asked[0] == signal.SIGINT:
        raise KeyboardInterrupt
    if _asked:
        sys.exit(128 + _asked[0])


@contextmanager
def uninterrupted() -> Generator[None]:
    """Have signals that ask the program to end wait for the end of the with statement."""
    if not _handles_signals():
        yield
        return
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in NUMBERS}
    taken = {number: handler for number, handler in previous.items() if handler not in (None, signal.SIG_IGN)}
    for number in taken:
        signal.signal(number, lambda number, _frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _handles_signals() -> bool:
    """Tell whether this is the main thread: Python runs handlers of signals there, and lets no other set them."""
    return threading.current_thread() is threading.main_thread()
