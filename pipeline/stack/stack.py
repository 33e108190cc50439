"""Stage: the whole stack up, and down again.

FOLDER/stack.json     what runs: processes, ports; there while the stack is up
FOLDER/env            what a shell has to know to use it; for its owner's eyes
FOLDER/token          that Ray asks for
FOLDER/s3/, mlflow/   their data, which stay for the next time
FOLDER/logs/          what the servers wrote
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.folder import flocked
from pipeline.processes import end, family
from pipeline.stack.ceph import forget_ceph, start_ceph
from pipeline.stack.service import Service, answers, free_ports, start, wait_until

log = logging.getLogger(__name__)

Store = Literal["auto", "ceph", "folder"]
RECORD, ENV, TOKEN, LOCK = "stack.json", "env", "token", "lock"
BUCKET = "forger"
OBJECT_STORE_BYTES = 128 * 2**20  # no objects pass through Ray here
GRACE_SEC = 10.0
RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody needs notice here
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine is no failure
    "RAY_enable_metrics_collection": "false",
    "RAY_event_stats": "false",
}
MLFLOW = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack that is up: its servers, its addresses, and where Ray keeps its sockets."""

    services: list[Service]
    addresses: dict[str, str]
    scratch: str
    variables: list[str]  # the names of those in ENV

    @property
    def ended(self) -> list[str]:
        """The servers that run no more."""
        return [service.name for service in self.services if not service.alive]


def up(
    folder: Path,
    *,
    workers: int = 0,
    store: Store = "auto",
    bucket: str = BUCKET,
    said: Callable[[str], None],
) -> Stack:
    """Starts what does not run yet, on loopback, and returns once all of it answers.

    With `workers`, the head has no CPUs and so many raylets share this machine's. `store` 'auto'
    is the one at AWS_ENDPOINT_URL, with `bucket` in it, or Ceph; with 'folder', MLflow keeps its
    files in the folder. Raises ConfigError where Ceph is not installed and StackError where a
    server does not start; then nothing is left running.
    """
    folder = folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(stat.S_IRWXU)
    with _alone(folder):
        known = _read(folder)
        if known is not None and not known.ended:
            said("it is up already")
            return known
        if known is not None:
            said(f"{', '.join(known.ended)} ended; all of it is started anew")
            _end(folder, known)
        return _start(folder, workers=workers, store=store, bucket=bucket, said=said)


def down(folder: Path, *, purge: bool = False) -> Stack | None:
    """Ends what `up` started in this folder and removes what only a running stack needs; with
    `purge`, its data too. Returns what was up, if anything.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        return None
    with _alone(folder):
        known = _read(folder)
        if known is not None:
            _end(folder, known)
        if purge:
            shutil.rmtree(folder)
    return known


def shell_lines(folder: Path) -> str:
    """What a shell evaluates to use the stack. It names the file that has the secrets."""
    return f". {shlex.quote(str(folder.expanduser().resolve() / ENV))}"


def _start(
    folder: Path, *, workers: int, store: Store, bucket: str, said: Callable[[str], None]
) -> Stack:
    named = store == "auto" and bool(os.environ.get("AWS_ENDPOINT_URL"))
    (folder / "logs").mkdir(exist_ok=True)
    if not (folder / TOKEN).exists():
        _private(folder / TOKEN, secrets.token_hex(32))
    scratch = Path(tempfile.mkdtemp(prefix="forger-"))  # a socket's path may have 107 letters
    services: list[Service] = []
    try:
        tell: dict[str, str] = {}
        if store == "folder":
            artifacts = str(folder / "mlflow" / "artifacts")
        else:
            artifacts = f"s3://{bucket}/mlflow"
        if named:
            tell |= {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        elif store != "folder":
            said("starting Ceph's S3")
            started, variables = start_ceph(folder / "s3")
            services += started
            tell |= variables
            _make_bucket(bucket, tell)
        said("starting MLflow and Ray")
        mlflow_port, ray_port, dashboard_port, *others = free_ports(3 + 4 * (workers + 1))
        tell |= {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / TOKEN),
        }
        services.append(_mlflow(folder, artifacts, mlflow_port, tell))
        head = [f"--port={ray_port}", "--head", "--dashboard-host=127.0.0.1"]
        head += [f"--dashboard-port={dashboard_port}"]
        cpus = os.cpu_count() or 1
        head += ["--num-cpus=0" if workers else f"--num-cpus={cpus}"]
        services.append(_raylet("ray-head", head, others[:4], folder, scratch, tell))
        dashboard = f"{tell['RAY_API_SERVER_ADDRESS']}/api/version"
        wait_until(
            lambda: answers(dashboard, 401) and _joined(folder, "ray-head"), services=services
        )
        wait_until(lambda: _head_address(scratch) != "", services=services)
        address = _head_address(scratch)
        for number in range(workers):
            ports = others[4 * (number + 1) : 4 * (number + 2)]
            share = [f"--address={address}", f"--num-cpus={max(1, cpus // workers)}"]
            name = f"ray-w{number + 1}"
            services.append(_raylet(name, share, ports, folder, scratch, tell))
            wait_until(lambda: _joined(folder, name), services=services)  # noqa: B023
        wait_until(
            lambda: answers(f"{tell['MLFLOW_TRACKING_URI']}/health", 200), services=services
        )
        tell["RAY_ADDRESS"] = address
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(tell.items())]
        _private(folder / ENV, "\n".join([*lines, ""]))
        addresses = {"Ray": address, "jobs": tell["RAY_API_SERVER_ADDRESS"],
                     "MLflow": tell["MLFLOW_TRACKING_URI"]}  # fmt: skip
        if store != "folder":
            addresses["S3"] = f"{tell['AWS_ENDPOINT_URL']} (s3://{bucket})"
        stack = Stack(services, addresses, str(scratch), sorted(tell))
        (folder / RECORD).write_text(json.dumps(asdict(stack), indent=1))
    except BaseException:
        _end(folder, Stack(services, {}, str(scratch), []))
        raise
    return stack


def _mlflow(folder: Path, artifacts: str, port: int, tell: Mapping[str, str]) -> Service:
    (folder / "mlflow").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", artifacts]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RAY_"))}
    env |= {k: v for k, v in tell.items() if k.startswith("AWS_")} | MLFLOW
    return start("mlflow", command, logs=folder / "logs", env=env, cwd=folder / "mlflow")


def _raylet(
    name: str,
    options: list[str],
    ports: list[int],
    folder: Path,
    scratch: Path,
    tell: Mapping[str, str],
) -> Service:
    """A node of Ray's. Jobs on it find this Python, and the addresses and secrets of the stack."""
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent")
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *options]
    command += [f"--{what}-port={port}" for what, port in zip(names, ports, strict=False)]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
    if "--head" in options:
        command.append(f"--ray-client-server-port={ports[3]}")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | dict(tell) | RAY
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    own = scratch / name.removeprefix("ray-")  # nodes of one machine overwrite each other's
    command.append(f"--temp-dir={own}")
    env["RAY_TMPDIR"] = str(scratch)
    return start(name, command, logs=folder / "logs", env=env, cwd=scratch)


def _private(file: Path, text: str) -> None:
    """Writes a file that only its owner may ever read."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)


def _head_address(scratch: Path) -> str:
    """Host and port of the head, as Ray itself noted them: it takes no loopback address. "" until
    then, which is only after Ray has said that it runs.
    """
    note = scratch / "head" / "ray_current_cluster"
    return note.read_text().strip() if note.exists() else ""


def _joined(folder: Path, name: str) -> bool:
    return "Ray runtime started" in (folder / "logs" / f"{name}.log").read_text(errors="replace")


def _make_bucket(bucket: str, tell: Mapping[str, str]) -> None:
    from pipeline.bucket import make_bucket

    os.environ.update(tell)
    make_bucket(bucket)


def _end(folder: Path, stack: Stack) -> None:
    """Ends the servers, those that were started last first, with all that descends from them."""
    first = [service.pid for service in stack.services if service.alive]
    known = family(first)
    ray = [service.pid for service in stack.services if service.name.startswith("ray")]
    for batch in (ray[::-1], first[::-1]):  # jobs of Ray's still write to the others
        within = {pid: began for pid, began in family(batch).items() if pid in known}
        end(within, first=[pid for pid in batch if pid in within], grace_sec=GRACE_SEC)
    end(known, first=(), grace_sec=0)
    forget_ceph(folder / "s3")
    shutil.rmtree(stack.scratch, ignore_errors=True)
    for name in (RECORD, ENV):
        (folder / name).unlink(missing_ok=True)


def _read(folder: Path) -> Stack | None:
    try:
        record = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    services = [Service(**service) for service in record.pop("services")]
    return Stack(services, **record)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with flocked(folder / LOCK, f"another `forger up` or `forger down` is at work in {folder}"):
        yield
