"""Who plays: the processes of a run, found from outside, and none of them left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
WORKER, CONTROLLER, RAYLET = "ray::RayTrainWorker", "ray::TrainController", "raylet/raylet"
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
FEW_BYTES = 2**16


def adopt_orphans() -> None:
    """From now on a process whose parent is killed becomes a child of this one, so that none can
    hide.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans")


def title(process: psutil.Process) -> str:
    """The command line of a process, empty where it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def family() -> list[psutil.Process]:
    """Every living process that stems from this one."""
    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def called(words: str, among: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """The processes of our family whose command line holds `words`."""
    return [p for p in (family() if among is None else among) if words in title(p)]


def ranks(among: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """The two newest workers, rank 0 first: it listens for the others at one port more."""
    newest = sorted(called(WORKER, among), key=lambda p: p.pid)[-2:]
    return sorted(newest, key=lambda p: (-_ports(p), p.pid))


def _ports(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return sum(c.status == psutil.CONN_LISTEN for c in process.net_connections("tcp"))
    return 0


def strike(process: psutil.Process, number: signal.Signals) -> None:
    """Sends a signal to a process that may be gone."""
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def bury() -> None:
    """Takes note of adopted processes that ended, so that they are zombies no longer.

    Those that somebody here waits for are children of their own Popen and are left to it.
    """
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if process.status() == psutil.STATUS_ZOMBIE and process.pid not in WAITED_FOR:
                os.waitpid(process.pid, os.WNOHANG)


WAITED_FOR: set[int] = set()  # the processes that are our own Popen's


def strays(known: set[int], *, patience_sec: float) -> list[str]:
    """What of our family is left beside `known` after so many seconds, by its command line."""
    deadline = time.monotonic() + patience_sec
    while True:
        bury()
        left = [p for p in family() if p.pid not in known]
        if not left or time.monotonic() > deadline:
            return [f"{p.pid} {title(p)[:100]}" for p in left]
        time.sleep(0.3)


def limit_memory(process: psutil.Process) -> Path | None:
    """Gives a process no more memory than it has; the kernel kills it at its next new page.

    Returns the memory group to remove once the process is gone. Where there are no memory groups
    to make, its address space is limited instead: its next allocation fails.
    """
    group = MEMORY_GROUPS / f"chaos-{process.pid}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(FEW_BYTES))
        (group / "cgroup.procs").write_text(str(process.pid))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        with contextlib.suppress(psutil.Error):
            here = process.memory_info().vms
            psutil.Process(process.pid).rlimit(psutil.RLIMIT_AS, (here, here))
        return None
    return group
