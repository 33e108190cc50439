"""An S3-compatible store on loopback: Ceph's object gateway over one disk file, from Debian's
packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

from pipeline.stack.service import (
    PATIENCE_SEC,
    Service,
    StackError,
    answers,
    start,
    wait_until,
)

PROGRAMS = (
    "ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin",
)  # fmt: skip
REMEDY = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd"
MOST_OF_DISK = 0.8  # how large the store's file may get; it is sparse, and takes what is in it
CACHE_BYTES = 64 * 2**20
KEY = "credentials"
CONF = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
ms bind msgr1 = false
public network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
keyring = {folder}/keyring
mon data = {folder}/mon
mon tick interval = 1
paxos propose interval = 0.05
paxos min wait = 0.02
run dir = {folder}/run
admin socket =
log to file = false
log to stderr = true
crash dir = {folder}/run
[osd]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = {most_bytes}
bluestore cache autotune = false
bluestore cache size = {cache_bytes}
osd op num shards = 2
osd op num threads per shard = 1
[client.rgw]
rgw data = {folder}/run
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 16
"""


def missing() -> list[str]:
    """The programs that it takes and that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def private(file: Path, text: str) -> None:
    """Writes a file that only its owner may ever read."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)


class Ceph:
    """The store in a folder; what was stored there before is there again."""

    def __init__(self, folder: Path, *, port: int, mon_port: int, services: list[Service]):
        self.folder, self.port = folder, port
        self.address = f"[v2:127.0.0.1:{mon_port}]"
        self.new = not (folder / "osd" / "ready").exists()
        if self.new:
            for name in ("mon", "osd", "run"):
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / "keyring").unlink(missing_ok=True)
        for name in ("mon", "osd", "run"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.fsid = self._once("fsid", str(uuid.uuid4()))
        settings = {"fsid": self.fsid, "mon_port": mon_port, "port": port, "folder": folder}
        most_bytes = int(shutil.disk_usage(folder).free * MOST_OF_DISK) >> 20 << 20
        settings |= {"most_bytes": most_bytes, "cache_bytes": CACHE_BYTES}
        (folder / "ceph.conf").write_text(CONF.format(**settings))
        self.env = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},  # Debian's own Python
            "CEPH_CONF": str(folder / "ceph.conf"),
        }
        self.services = services

    def start(self) -> None:
        """Starts monitor, disk and gateway, adds them to `services`, and waits for them."""
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        if self.new:
            self._keys(Path(keyring))
        self._must(
            "monmaptool", "--create", "--clobber", "--addv", "a", self.address,
            "--fsid", self.fsid, monmap,
        )  # fmt: skip
        if self.new:
            self._must("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        else:  # its port is another one
            self._must("ceph-mon", "-i", "a", "--inject-monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        wait_until(lambda: self._ask("mon", "stat") is not None, services=self.services)
        if self.new:
            disk = str(uuid.uuid4())
            self._must("ceph", "osd", "new", disk, "0")
            self._must("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._daemon("ceph-osd", "-i", "0")
        wait_until(lambda: "1 up" in (self._ask("osd", "stat") or ""), services=self.services)
        self._daemon("radosgw", "-n", "client.rgw")
        if self.new:  # Ceph makes the secret: in a command's words others could read it
            user = self._must(
                "radosgw-admin", "user", "create", "--uid=forger", "--display-name=forger"
            )
            key = json.loads(user)["keys"][0]
            private(self.folder / KEY, f"{key['access_key']}\n{key['secret_key']}\n")
            (self.folder / "osd" / "ready").touch()
        wait_until(lambda: answers(f"http://127.0.0.1:{self.port}", 200), services=self.services)

    def variables(self) -> dict[str, str]:
        """What the store's clients must have in their environment."""
        access, secret = (self.folder / KEY).read_text().split()
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _keys(self, keyring: Path) -> None:
        self._key(keyring, "mon.", mon="allow *")
        self._key(keyring, "client.admin", mon="allow *", osd="allow *", mgr="allow *")
        self._key(keyring, "client.rgw", mon="allow rwx", osd="allow rwx")
        self._key(keyring, "osd.0", mon="allow profile osd", osd="allow *")

    def _key(self, keyring: Path, name: str, **caps: str) -> None:
        create = [] if keyring.exists() else ["--create-keyring"]
        words = [word for who, cap in caps.items() for word in ("--cap", who, cap)]
        self._must("ceph-authtool", str(keyring), "--gen-key", "-n", name, *words, *create)

    def _once(self, name: str, value: str) -> str:
        file = self.folder / name
        if self.new or not file.exists():
            file.write_text(value)
        return file.read_text()

    def _daemon(self, *command: str) -> None:
        logs = self.folder.parent / "logs"
        self.services.append(
            start(command[0], [*command, "-f"], logs=logs, env=self.env, cwd=self.folder)
        )

    def _ask(self, *question: str) -> str | None:
        done = self._run("ceph", "--connect-timeout", "2", *question)
        return done.stdout.decode() if done.returncode == 0 else None

    def _must(self, *command: str) -> str:
        done = self._run(*command)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()[-1000:]
            raise StackError(f"{command[0]} failed: {words}")
        return done.stdout.decode()

    def _run(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command, env=self.env, capture_output=True, timeout=PATIENCE_SEC, cwd=self.folder
        )
