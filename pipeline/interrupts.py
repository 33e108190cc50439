"""Ctrl-C and SIGTERM as a wish that is looked at between two steps, instead of an error in one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

WISHES = (signal.SIGINT, signal.SIGTERM)  # a person's, and that of whoever manages processes


class Interrupts:
    """Within the block the first signal is only counted, the second raises KeyboardInterrupt.

    As an exception it would come up in the middle of whatever library is at work. Outside the main
    thread, which alone hears signals, the block changes nothing, nor where a signal is ignored, as
    a script's background jobs do with Ctrl-C.
    """

    def __init__(self) -> None:
        self.heard = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for wish in WISHES:
                if signal.getsignal(wish) is not signal.SIG_IGN:
                    self._before[wish] = signal.signal(wish, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        for wish, before in self._before.items():
            signal.signal(wish, before)
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard += 1
        if self.heard > 1:
            raise KeyboardInterrupt
