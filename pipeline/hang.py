"""A worker that makes no progress ends itself, and leaves what all its threads were doing."""

from __future__ import annotations

import faulthandler
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

REARM_SEC = 1.0  # arming costs a thread, so not at every round


class Alive:
    """Called as often as there is progress; `hang_sec` after the last call the process ends.

    The clock is the C library's and needs no interpreter, so a thread that holds Python's lock
    for ever is noticed too. What all threads were doing is then in the file `stacks`. (A process
    that is frozen whole is noticed by Ray's health check instead.) One a process.
    """

    def __init__(self, stacks: Path, *, hang_sec: float):
        self._stacks, self._hang_sec = stacks, hang_sec
        self._file: TextIO | None = None
        self._armed = -REARM_SEC

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._armed < REARM_SEC:
            return
        if self._file is None:
            self._stacks.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._stacks, "w")  # noqa: SIM115  (written to at the very end)
            faulthandler.enable(file=self._file)  # a crash in native code leaves its stacks too
        self._armed = now
        faulthandler.dump_traceback_later(self._hang_sec, exit=True, file=self._file)

    def close(self) -> None:
        """Stops the clock, and removes the file, which is empty, and its folder."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.enable()  # to the standard error again, as Ray has it
            self._file.close()
            self._stacks.unlink(missing_ok=True)
            with suppress(OSError):  # another rank's file may be there still
                self._stacks.parent.rmdir()
            self._file = None


def stacks_in(folder: Path, prefix: str = "") -> dict[str, str]:
    """What workers wrote there as they hung or crashed, by file name; empty files are removed, as
    killed workers leave them.
    """
    found = {}
    for path in sorted(folder.glob(f"{prefix}*.txt")):
        with suppress(OSError):  # on a shared folder another node may clear up too
            text = path.read_text(errors="replace")
            if text:
                found[path.name] = text
            else:
                path.unlink()
    with suppress(OSError):
        folder.rmdir()
    return found
