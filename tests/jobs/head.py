"""A Ray head that asks for a token, and a line to it that can be cut."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.processes import end, family
from tests.pipeline.servers import (
    DEADLINE_SEC,
    free_port,
    wait_until,
)

BIN = Path(sys.executable).parent


@dataclass
class Cluster:
    """A head, and a folder on the machine that submits to it."""

    folder: Path
    session: Path
    dashboard: str
    env: dict[str, str]

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=self.folder,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def watch(self, *words: str, **env: str) -> Iterator[str]:
        """What a command prints, line by line; then its exit code and errors, as one line."""
        with self.start(*words, **env) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            errors: list[str] = []
            listening = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
            listening.start()
            yield from process.stdout
            listening.join()
        yield f"{process.returncode} {' '.join(errors)}"

    def run(self, *words: str, code: int = 0, **env: str) -> str:
        process = self.start(*words, **env)
        output, errors = process.communicate(timeout=DEADLINE_SEC)
        assert process.returncode == code, output + errors
        return output + errors

    def ask(self, path: str) -> bytes:
        token = Path(self.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {token}"}
        )
        return urllib.request.urlopen(request, timeout=60).read()


@contextmanager
def ray_head(folder: Path, env: dict[str, str]) -> Iterator[str]:
    """A head of two CPUs; gives its dashboard's address."""
    ports = {name: free_port() for name in (
        "port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port", "runtime-env-agent-port",
    )}  # fmt: skip
    command = [BIN / "ray", "start", "--head", "--block", "--dashboard-host=127.0.0.1"]
    command += ["--num-cpus=2", f"--object-store-memory={128 * 2**20}", f"--temp-dir={folder}/r"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log, dashboard = folder / "head.log", f"http://127.0.0.1:{ports['dashboard-port']}"
    with log.open("wb") as file:
        head = subprocess.Popen(command, stdout=file, stderr=file, env=env, cwd=folder)

    def ready() -> bool:
        try:
            urllib.request.urlopen(f"{dashboard}/api/version", timeout=5)
        except urllib.error.HTTPError as error:
            return error.code == 401 and "Ray runtime started" in log.read_text()
        except OSError:
            return False
        raise AssertionError("the head asks for no token")

    try:
        wait_until(ready, "ray", processes=(head,), log=log)
        yield dashboard
    finally:
        end(family([head.pid]), first=[head.pid], grace_sec=5)
        head.wait()


class Line:
    """A line to a server that can be cut: all connections on it end at once."""

    def __init__(self, upstream: str):
        self.upstream = upstream.rpartition("/")[2].split(":")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        cut, self.open = self.open, []
        for end_of_it in cut:
            with ExitStack() as ignored:
                ignored.callback(end_of_it.close)
                with suppress(OSError):
                    end_of_it.shutdown(socket.SHUT_RDWR)
        return len(cut)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection((self.upstream[0], int(self.upstream[1])))
            self.open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            return
