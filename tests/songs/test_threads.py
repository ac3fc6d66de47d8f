"""Work in threads: in order, with its errors, and ended before anything else goes on."""

from __future__ import annotations

import threading
import time

import pytest

from hunterFormsBS.songs.threads import WAITING, WORKERS, Behind, side_by_side


def test_results_are_in_order_and_calls_at_the_same_time() -> None:
    together = min(3, WORKERS)
    meeting = threading.Barrier(together, timeout=10)

    def work(number: int, factor: int) -> int:
        meeting.wait()
        return number * factor

    results = side_by_side(work, [1, 2, 3][:together], [10, 20, 30][:together])
    assert results == [10, 40, 90][:together]


def test_the_first_error_is_raised_when_all_have_ended() -> None:
    ended = []

    def work(number: int) -> None:
        time.sleep(0.01 * number)
        ended.append(number)
        if number:
            raise ValueError(number)

    with pytest.raises(ValueError, match="1"):
        side_by_side(work, [0, 1, 2])
    assert sorted(ended) == [0, 1, 2]


def test_all_is_done_in_order_at_the_end() -> None:
    done: list[tuple[int, str]] = []
    with Behind[int](lambda item: done.append((item, threading.current_thread().name))) as behind:
        for number in range(20):
            behind(number)
    assert [number for number, _ in done] == list(range(20))
    assert {name for _, name in done} != {threading.current_thread().name}


def test_no_more_than_a_few_items_wait() -> None:
    going_on = threading.Event()
    given: list[int] = []
    with Behind[int](lambda _item: going_on.wait(10)) as behind:

        def give() -> None:
            for number in range(WAITING + 3):
                behind(number)
                given.append(number)

        thread = threading.Thread(target=give)
        thread.start()
        thread.join(0.2)
        assert len(given) == WAITING + 1  # one is being done
        going_on.set()
        thread.join()
    assert len(given) == WAITING + 3


@pytest.mark.parametrize("count", [1, 20])
def test_an_error_comes_out_and_what_is_after_it_is_dropped(count: int) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        done.append(item)
        raise OSError(28, "No space left on device")

    def give() -> None:
        with Behind[int](work) as behind:
            for number in range(count):
                behind(number)

    with pytest.raises(OSError, match="No space left"):
        give()
    assert done == [0]


def test_after_an_interruption_what_waits_is_dropped_and_what_runs_has_ended() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.05)
        done.append(item)

    def give() -> None:
        with Behind[int](work) as behind:
            behind(0)
            behind(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give()
    assert done in ([0], [])
    time.sleep(0.1)
    assert done in ([0], [])
