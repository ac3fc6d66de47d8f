"""How fast a run goes, how long it will take, and how much memory it has taken."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch


class Speed:
    """Count updates and seconds of audio in time.

    Parameters
    ----------
    now : callable, default time.perf_counter
        Returns seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._begun = self._since = now()
        self._updates = self._updates_since = 0
        self._audio = 0.0

    def count(self, audio: float) -> None:
        """Count an update that heard so many seconds of audio, of all processes together."""
        self._updates += 1
        self._updates_since += 1
        self._audio += audio

    @contextmanager
    def left_out(self) -> Generator[None]:
        """Leave the time within this with statement out of the speed, though not out of the time left."""
        before = self._now()
        try:
            yield
        finally:
            self._since += self._now() - before

    def read(self, left: int) -> dict[str, float]:
        """Return the speed since it was read last, and the time left.

        Parameters
        ----------
        left : int
            Updates to make.
        """
        now = self._now()
        time_since, per_update = now - self._since, (now - self._begun) / self._updates
        read = {
            "speed/updates_per_second": self._updates_since / time_since,
            "speed/audio_per_second": self._audio / time_since,
            "speed/hours_left": left * per_update / 3600,
        }
        self._since, self._updates_since, self._audio = now, 0, 0.0
        return read


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that tensors took on a GPU, or the process took on a CPU, so far; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":  # which keeps no peak
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
