"""Processes of this machine by what /proc says of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

POLL_SEC = 0.1


def started(pid: int) -> int:
    """When the process began, in ticks since the machine did; 0 where there is none, or only what
    its parent has not buried yet.
    """
    fields = _fields(pid)
    return 0 if not fields or fields[0] in "ZX" else int(fields[19])


def family(pids: Iterable[int]) -> dict[int, int]:
    """These processes and all that descend from them, each with when it began."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found = set(pids)
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: began for pid in found if (began := started(pid))}


def end(known: dict[int, int], *, first: Iterable[int], grace_sec: float) -> None:
    """Asks the processes `first` to end, and kills those of `known` (pid to when it began) that
    are left after `grace_sec`. A number that another process has by now is let alone.
    """

    def alive() -> list[int]:
        return [pid for pid, began in known.items() if started(pid) == began]

    for pid in set(first) & set(alive()):
        _send(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_sec
    while alive() and time.monotonic() < deadline:
        time.sleep(POLL_SEC)
    for pid in alive():
        _send(pid, signal.SIGKILL)
    while alive():
        time.sleep(POLL_SEC)


def _send(pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, what)


def _fields(pid: int) -> list[str]:
    """What /proc says from the state on; [] where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
