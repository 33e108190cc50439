"""Ctrl-C between two steps."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pipeline.interrupts import Interrupts


@pytest.fixture(autouse=True)
def foreground():
    """As in a terminal; whoever started the tests may have had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_is_counted_and_the_second_raises():
    with Interrupts() as interrupts:
        press()
        assert interrupts.heard == 1
        with pytest.raises(KeyboardInterrupt):
            press()


def test_after_the_block_it_is_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        press()


def test_in_another_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere() -> None:
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_background_job_that_ignores_it_goes_on_ignoring_it():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts:
        press()
        press()
    assert interrupts.heard == 0
