"""A server of the stack: started apart from this command, and looked at until it is ready."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.processes import started

PATIENCE_SEC = 180.0
POLL_SEC = 0.1
ASK_SEC = 5.0


class StackError(Exception):
    """A server of the stack did not start."""


@dataclass(frozen=True, slots=True)
class Service:
    """A process that runs on when this command ends."""

    name: str
    pid: int
    began: int  # by /proc: tells it from a later process of its number; 0 if it was over by then
    log: str

    @property
    def alive(self) -> bool:
        """Whether it runs still."""
        return self.began > 0 and started(self.pid) == self.began


def start(
    name: str, command: Sequence[str], *, logs: Path, env: Mapping[str, str], cwd: Path
) -> Service:
    """Starts a server in a session of its own, so that no Ctrl-C of this terminal reaches it."""
    log = logs / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd,
            env=dict(env), start_new_session=True,
        )  # fmt: skip
    return Service(name, process.pid, started(process.pid), str(log))


def wait_until(ready: Callable[[], bool], *, services: Sequence[Service]) -> None:
    """Waits until `ready()`. Raises StackError, with the end of its log, where one of the
    `services` that this takes has ended, or where it takes too long.
    """
    deadline = time.monotonic() + PATIENCE_SEC
    while not ready():
        ended = [service for service in services if not service.alive]
        if ended or time.monotonic() > deadline:
            service = (ended or list(services))[0]
            log = Path(service.log).read_text(errors="replace").strip()[-1500:]
            what = "ended at once" if ended else f"is not ready after {PATIENCE_SEC:g} s"
            raise StackError(f"{service.name} {what}; {service.log} ends with:\n{log}")
        time.sleep(POLL_SEC)


def answers(url: str, *codes: int) -> bool:
    """Whether the server at this address answers with one of these codes."""
    try:
        with urllib.request.urlopen(url, timeout=ASK_SEC) as answer:
            return answer.status in codes
    except urllib.error.HTTPError as error:
        return error.code in codes
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """So many ports of loopback that nobody has at this moment, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
