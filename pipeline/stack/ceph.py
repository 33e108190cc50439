"""An S3-compatible store on loopback for the stack, by ceph-up.sh beside this file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from gan.config import ConfigError
from pipeline.processes import started
from pipeline.stack.service import Service, StackError

SCRIPT = Path(__file__).with_name("ceph-up.sh")
SERVERS = {"ceph-mon": "mon", "ceph-osd": "osd", "radosgw": "gateway"}  # and the script's names
MISSING = 3  # the script's exit code where programs are missing
MOST_OF_DISK = 0.8  # how large the store's file may get; it is sparse, and takes what is in it


def start_ceph(folder: Path) -> tuple[list[Service], dict[str, str]]:
    """Starts the store in `folder`, where what was stored before is there again: its servers, and
    what its clients must have in their environment.

    Raises ConfigError where Ceph is not installed, and StackError where it does not start; then
    nothing of it is left running.
    """
    folder.mkdir(parents=True, exist_ok=True)
    most_gb = int(shutil.disk_usage(folder).free * MOST_OF_DISK) >> 30
    told = _script(folder, "--disk", "--gb", str(max(1, most_gb)))
    lines = (line.removeprefix("export ") for line in told.splitlines())
    variables = dict(line.split("=", 1) for line in lines)
    return [_service(folder, *names) for names in SERVERS.items()], variables


def forget_ceph(folder: Path) -> None:
    """Removes what only a running store needs; ends what may be left of it."""
    if folder.is_dir():
        _script(folder, "down")


def _service(folder: Path, name: str, file: str) -> Service:
    pid = int((folder / f"{file}.pid").read_text())
    return Service(name, pid, started(pid), str(folder / "log" / f"{file}.out"))


def _script(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["/bin/bash", str(SCRIPT), str(folder), *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == MISSING:
        raise ConfigError(
            [
                f"{done.stderr.strip()}; or set AWS_ENDPOINT_URL and its keys to use another S3 "
                f"store, or say --store folder to do without one"
            ]
        )
    if done.returncode:
        raise StackError(done.stderr.strip())
    return done.stdout
