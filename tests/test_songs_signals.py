"""Signals that ask the program to end: the first does, all later ones wait for the cleaning up."""

from __future__ import annotations

import os
import signal
import threading

import pytest

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
    try:
        with ending_on_signals(), uninterrupted():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


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
