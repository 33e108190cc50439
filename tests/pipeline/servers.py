"""Real servers for tests on loopback: Postgres, Ceph's S3, MLflow, and a proxy that loses answers.

Each is a context manager that starts processes of its own and ends them by their ids. A server
that this machine does not have raises Missing; `or_skip` makes a skipped test of it, and a failed
one where CI=true, because there the packages are installed by .ci/run.
"""

from __future__ import annotations

import http.client
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from glob import glob
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import psutil
import pytest

DEADLINE_SEC = 1800  # a net under what hangs; nothing is judged by it
BUCKET = "tests"  # that every test may use


class Missing(Exception):
    """A program that a server needs is not on this machine."""


def or_skip(error: Missing) -> NoReturn:
    """Skips the test with the reason; on CI, where nothing may be missing, it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have it: {error}")
    pytest.skip(str(error))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(
    ready: Callable[[], bool], what: str, *, processes: tuple = (), log: Path | None = None
) -> None:
    """Waits for a server to be ready; raises with its log where it ended or took too long."""
    deadline = time.monotonic() + DEADLINE_SEC
    while time.monotonic() < deadline:
        if ready():
            return
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.1)
    raise RuntimeError(f"{what} did not start: {log.read_text()[-4000:] if log else ''}")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def process(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, killed with its children when the block ends."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            **options,
        )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, 9)
        started.wait()


@contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """A folder that another user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- Postgres ---------------------------------------------------------------------------------


def _postgres_programs() -> Path:
    for found in (shutil.which("initdb"), *sorted(glob("/usr/lib/postgresql/*/bin/initdb"))[::-1]):
        if found and (Path(found).resolve().parent / "postgres").exists():
            return Path(found).resolve().parent
    raise Missing("Postgres is not installed (Debian: apt-get install postgresql)")


def _as_nobody_special() -> dict[str, Any]:
    """Postgres refuses to run as root: then another user runs it."""
    if os.getuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise Missing("Postgres cannot run as root, and there is no other user to run it")


@contextmanager
def postgres(*databases: str) -> Iterator[dict[str, str]]:
    """A Postgres with these databases; gives each one's SQLAlchemy address."""
    programs, who = _postgres_programs(), _as_nobody_special()
    with open_folder("forger-postgres-") as folder:
        data, log, port = folder / "data", folder / "log", free_port()
        if who:
            os.chown(folder, who["user"], who["group"])
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "forger", "--auth=trust", "--no-sync"],
            check=True, capture_output=True, cwd=folder, **who,
        )  # fmt: skip
        # What a power cut would lose is not tested, and a disk shared by five would be waited for.
        settings = ["fsync=off", "full_page_writes=off", f"unix_socket_directories={folder}"]
        settings += ["max_connections=200", "listen_addresses=127.0.0.1", f"port={port}"]
        command = [str(programs / "postgres"), "-D", str(data)]
        for setting in settings:
            command += ["-c", setting]
        with process(command, log, cwd=folder, **who) as server:
            ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            wait_until(
                lambda: subprocess.run(ready, capture_output=True).returncode == 0,
                "postgres", processes=(server,), log=log,
            )  # fmt: skip
            for name in databases:
                create = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port)]
                subprocess.run([*create, "-U", "forger", name], check=True, capture_output=True)
            yield {
                name: f"postgresql+psycopg2://forger@127.0.0.1:{port}/{name}" for name in databases
            }


# --- S3 ---------------------------------------------------------------------------------------

CEPH_UP = Path(__file__).parents[2] / "infra" / "s3" / "ceph-up.sh"
MISSING = 3  # its exit code where programs are missing


class S3(dict[str, str]):
    """The environment that clients of a running gateway need, and the gateway in your hand."""

    def __init__(self, folder: Path, told: str):
        super().__init__(line.removeprefix("export ").split("=", 1) for line in told.splitlines())
        self.folder = folder

    @property
    def gateway(self) -> psutil.Process:
        """The gateway's process, the leader of a group of its own."""
        return psutil.Process(int((self.folder / "gateway.pid").read_text()))

    def kill(self) -> None:
        """SIGKILL to the gateway: what it was doing is lost, what it answered is stored."""
        gateway = self.gateway
        os.killpg(gateway.pid, signal.SIGKILL)
        wait_until(lambda: not _lives(gateway), "the end of the gateway")

    def restart(self) -> None:
        """A new gateway in the place of the one that was killed."""
        _ceph_up(self.folder, "gateway")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The gateway holds its connections and answers nothing within the block."""
        pid = self.gateway.pid
        os.killpg(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(pid, signal.SIGCONT)


@contextmanager
def s3() -> Iterator[S3]:
    """Ceph's object gateway over an in-memory store; see S3 for what it gives."""
    with open_folder("forger-s3-") as folder:
        told = _ceph_up(folder)
        try:
            yield S3(folder, told)
        finally:
            _ceph_up(folder, "down")


def _ceph_up(folder: Path, *words: str) -> str:
    command = ["bash", str(CEPH_UP), str(folder), *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == MISSING:
        raise Missing(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout


def _lives(process: psutil.Process) -> bool:
    """Whether it runs; what nobody has waited for is dead all the same."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def make_bucket(env: dict[str, str], name: str) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name=env["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=name)


# --- MLflow -----------------------------------------------------------------------------------

ADMIN = ("admin", "the-admin-of-the-tests")
AUTH_INI = """
[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {admin}
admin_password = {password}
auth_cache_ttl_seconds = 300
"""


@contextmanager
def mlflow_server(
    store: str,
    artifacts: str,
    folder: Path,
    *,
    workers: int = 1,
    auth_database: str | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[str]:
    """An `mlflow server` over a database and an artifact store; gives its address.

    With `auth_database` it asks for names and passwords, and ADMIN is its administrator.
    """
    port, log = free_port(), folder / "mlflow-server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", str(workers)]
    command += ["--backend-store-uri", store, "--artifacts-destination", artifacts]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AWS_"))}
    clean |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    clean |= env or {}
    if auth_database is not None:
        command += ["--app-name", "basic-auth"]
        settings = {"database": auth_database, "admin": ADMIN[0], "password": ADMIN[1]}
        (folder / "auth.ini").write_text(AUTH_INI.format(**settings))
        clean["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "auth.ini")
        clean["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_hex(16)
    with process(command, log, env=clean, cwd=folder) as server:
        wait_until(lambda: _healthy(port), "mlflow server", processes=(server,), log=log)
        yield f"http://127.0.0.1:{port}"


def _healthy(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


# --- a network that loses answers -------------------------------------------------------------


@dataclass
class LossyProxy:
    """Passes requests on and, for a share of those that `applies` to, loses the answer.

    The server has done what was asked when its answer is lost: the client only sees the connection
    close. `lost` lists what was lost, as (method, path).
    """

    upstream: str
    share: float
    seed: int = 0
    applies: Callable[[str, str], bool] = lambda method, path: True
    lost: list[tuple[str, str]] = field(default_factory=list)
    passed: int = 0
    uri: str = ""

    def __enter__(self) -> LossyProxy:
        target, proxy, dice = urlsplit(self.upstream), self, random.Random(self.seed)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                connection = http.client.HTTPConnection(target.hostname or "", target.port)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if proxy.applies(self.command, self.path) and dice.random() < proxy.share:
                    proxy.lost.append((self.command, urlsplit(self.path).path))
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                proxy.passed += 1
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
