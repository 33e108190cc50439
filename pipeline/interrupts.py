"""Ctrl-C as a wish that is looked at between two steps, instead of an error inside one."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupts:
    """Within the block the first Ctrl-C is only counted, the second raises KeyboardInterrupt.

    As an exception it would come up in the middle of whatever library is at work. Outside the main
    thread, which alone hears signals, the block changes nothing, nor where Ctrl-C is ignored, as a
    script's background jobs do.
    """

    def __init__(self) -> None:
        self.heard = 0

    def __enter__(self) -> Interrupts:
        main = threading.current_thread() is threading.main_thread()
        self._mine = main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        if self._mine:
            self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        if self._mine:
            signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard += 1
        if self.heard > 1:
            raise KeyboardInterrupt
