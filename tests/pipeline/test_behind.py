"""Work behind the game's back: in order, and nothing after a failure."""

from __future__ import annotations

import threading

import pytest

from pipeline.behind import Behind


def test_tasks_are_done_in_order_while_the_caller_goes_on():
    behind, go, done = Behind("test"), threading.Event(), []
    behind.do(lambda: (go.wait(60), done.append(1))[1])
    behind.do(lambda: done.append(2))
    assert done == []
    go.set()
    behind.close()
    assert done == [1, 2]


def test_who_waits_is_heard_of_every_second():
    looks = threading.Semaphore(0)
    behind = Behind("test", waiting=looks.release)

    def until_heard_of_twice() -> None:
        for _ in range(2):
            looks.acquire()

    behind.do(until_heard_of_twice)
    behind.close()


def test_nothing_is_begun_after_a_failure_and_every_later_call_raises_it():
    behind, done = Behind("test"), []

    def fail() -> None:
        raise OSError("the disk is full")

    behind.do(fail)
    with pytest.raises(OSError, match="disk is full"):
        behind.wait()
    with pytest.raises(OSError, match="disk is full"):
        behind.do(lambda: done.append(1))
    with pytest.raises(OSError, match="disk is full"):
        behind.close()
    assert done == []
