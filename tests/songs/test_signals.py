"""Signals that ask the program to end: the first does, all later ones wait for the cleaning up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hunterFormsBS.console import Console
from hunterFormsBS.songs import encoders, headers, reading, writing
from hunterFormsBS.songs.encodings import Encoding
from hunterFormsBS.songs.progress import SongProgress
from hunterFormsBS.songs.signals import NUMBERS, ending_on_signals, uninterrupted

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows cannot send these to a process")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("second", NUMBERS)
def test_the_first_signal_ends_and_a_second_does_not_interrupt_the_cleaning_up(number: int, second: int) -> None:
    before = {each: signal.getsignal(each) for each in NUMBERS}
    cleaned = []

    def end_and_clean() -> None:
        with ending_on_signals():
            try:
                os.kill(os.getpid(), number)
                cleaned.append("not reached")
            finally:
                os.kill(os.getpid(), second)
                cleaned.append("cleaned")

    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
            end_and_clean()
        # Until the program has ended.
        assert {signal.getsignal(each) for each in NUMBERS} == {signal.SIG_IGN}
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert cleaned == ["cleaned"]
    if number == signal.SIGINT:
        assert caught.type is KeyboardInterrupt
    else:
        assert caught.value.args == (128 + number,)


def test_what_the_program_was_started_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handlers = []
    try:
        with ending_on_signals(), uninterrupted():
            os.kill(os.getpid(), signal.SIGHUP)
            handlers.append(signal.getsignal(signal.SIGHUP))
    finally:
        handlers.append(signal.getsignal(signal.SIGHUP))
        signal.signal(signal.SIGHUP, before)
    assert handlers == [signal.SIG_IGN, signal.SIG_IGN]


def test_a_signal_waits_for_the_end_of_what_is_not_interrupted() -> None:
    done = []

    def work() -> None:
        with ending_on_signals(), uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(1)

    before = {each: signal.getsignal(each) for each in NUMBERS}
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert done == [1]


def test_an_interruption_that_was_lost_comes_again_with_the_next_chunk() -> None:
    before = {each: signal.getsignal(each) for each in NUMBERS}
    try:
        with ending_on_signals(), SongProgress(Console("test"), "song", 1) as progress:
            progress(0, 1, 3)
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                progress(0, 2, 3)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_other_threads_change_no_handlers() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with ending_on_signals(), uninterrupted():
                pass
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


@pytest.mark.parametrize("moment", [1, 2, 5])
@pytest.mark.parametrize(
    ("kind", "method"),
    [(headers.PatchedFile, "read"), (headers.PatchedFile, "seek"), (encoders.RecordingFile, "write")],
)
def test_a_signal_within_a_callback_of_a_library_in_c_is_not_lost(
    kind: type[Any], method: str, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 20_000), 8000)
    called: list[int] = []
    original: Callable[..., Any] = getattr(kind, method)

    def interrupted(*arguments: Any) -> Any:
        called.append(1)
        if len(called) == moment:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(kind, method, interrupted)

    def copy() -> None:
        audio, rate = reading.read_audio(path)
        file = tmp_path / "out" / "b.flac"
        with writing.writing_together(tmp_path / "out", {"b": file}, rate, Encoding("flac", 24)) as folder:
            folder.open(1)[0].write(audio)

    with pytest.raises(KeyboardInterrupt):
        copy()
    assert len(called) >= moment
    assert not (tmp_path / "out").exists()
