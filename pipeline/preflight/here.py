"""Checks that this process makes by itself: data, storage, MLflow, the token of a cluster."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import random
import socket
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gan.config import ConfigError, check_sample
from pipeline.backend import backend
from pipeline.data_checks import check_data
from pipeline.dataset import ShardSet, open_shards
from pipeline.experiment import Experiment
from pipeline.preflight.findings import Finding, good, refused, wrong
from pipeline.storage import Storage, StorageError, open_storage

SAMPLED_SHARDS = 8
SAMPLED_BYTES = 2**30  # no more is read for checksums, but for a first shard
MARKS = "check-"  # a folder beside the runs, while it is checked
TRACKED_IN = "forger-check"  # MLflow's experiment
AGAIN = "prepare the data again"
FITTING = "data that fits the players and the order"


def check_data_set(experiment: Experiment) -> tuple[ShardSet | None, list[Finding]]:
    """Whether the data is there, whole as far as sampled checksums tell, and fits the players."""
    try:
        shards = open_shards(experiment.data.shards)
    except ConfigError as error:
        return None, refused(
            "data", error, needed="an index that `forger prepare` wrote", remedy=AGAIN
        )
    except StorageError as error:
        remedy = "see the reason; for a bucket, AWS's variables"
        return None, [wrong("data", str(error), needed="data that can be read", remedy=remedy)]
    found = []
    for fits in (
        lambda: check_sample(experiment.game, shards.sample),
        lambda: check_data(experiment.data, shards),
    ):
        try:
            fits()
        except ConfigError as error:
            remedy = "change the setting, or prepare other data"
            found += refused("data", error, needed=FITTING, remedy=remedy)
    found += check_shards(shards)
    if found:
        return shards, found
    shape = " x ".join(map(str, shards.sample.shape))
    said = f"{shards.num_images:,} images of {shape} in {shards.uri}, digest {shards.digest[:12]}"
    return shards, [good("data", said)]


def check_shards(shards: ShardSet) -> list[Finding]:
    """What is missing, and what of a sample differs from its checksum."""
    storage, needed = open_storage(shards.uri), "every shard, as it was prepared"
    try:
        there = set(storage.names())
        missing = [shard.file for shard in shards.shards if shard.file not in there]
        if missing:
            said = f"{len(missing)} of {len(shards.shards)} shards are missing: {missing[0]}"
            return [wrong("data", said, needed=needed, remedy=AGAIN)]
        sample, read = list(shards.shards), 0
        random.Random(shards.digest).shuffle(sample)
        for shard in sample[:SAMPLED_SHARDS]:
            if read and read + (shard.num_bytes or 0) > SAMPLED_BYTES:
                break
            with storage.local(shard.file) as path, path.open("rb") as file:
                digest, read = hashlib.file_digest(file, "sha256").hexdigest(), read + file.tell()
            if digest != shard.sha256:
                said = f"{shards.uri}/{shard.file} differs from its checksum"
                return [wrong("data", said, needed=needed, remedy=AGAIN)]
    except (StorageError, FileNotFoundError) as error:
        return [wrong("data", str(error), needed=needed, remedy="see the reason")]
    return []


def new_mark() -> str:
    """A folder's name for one check, beside the runs."""
    return f"{MARKS}{uuid.uuid4().hex[:12]}"


def check_storage(storage: Storage, mark: str) -> Finding:
    """Whether this process can publish in the storage, and only one of two writers wins there.

    What it writes is below the folder `mark`, and gone at the end.
    """
    needed, name = "a place to write to, where of two writers exactly one wins", f"{mark}/driver"
    began = time.perf_counter()
    try:
        first, second = storage.create(name, b"first"), storage.create(name, b"second")
        held = storage.read(name)
        storage.write(name, b"third")
        replaced = storage.read(name)
        storage.delete(name)
        gone = not storage.exists(name)
    except (StorageError, FileNotFoundError) as error:
        remedy = "see the reason, or set another cluster.storage"
        return wrong("storage", str(error), needed=needed, remedy=remedy)
    if not first or second or held != b"first":
        return wrong(
            "storage",
            f"{storage.uri} lets a second writer replace what a first one made",
            needed=needed,
            remedy="use a store that honours If-None-Match, such as AWS's or Ceph's",
        )
    if replaced != b"third" or not gone:
        said = f"{storage.uri} does not give back what was just written to it"
        remedy = "use a store that is consistent, such as AWS's or Ceph's"
        return wrong("storage", said, needed="reads that see the last write", remedy=remedy)
    spent = time.perf_counter() - began
    return good("storage", f"{storage.uri} takes and gives back a file in {spent / 6:.3f} s")


def sweep_marks(storage: Storage, mark: str) -> None:
    """Removes what the check and its workers left below `mark`."""
    for name in storage.names(mark):
        storage.delete(name)


def check_tracking(storage: str) -> Finding:
    """Whether a run, with a metric and a file, can be written to MLflow."""
    needed, remedy = "an MLflow that takes runs, metrics and files", "set MLFLOW_TRACKING_URI"
    try:
        where = backend(storage)
    except ConfigError as error:
        return refused("MLflow", error, needed=needed, remedy=remedy)[0]
    except OSError as error:
        return wrong("MLflow", str(error), needed=needed, remedy=remedy)
    from pipeline.tracking import try_out

    began = time.perf_counter()
    try:
        try_out(where, TRACKED_IN)
    except ConfigError as error:
        return refused("MLflow", error, needed=needed, remedy=remedy)[0]
    except Exception as error:  # of MLflow, its database or its store: whichever, it is not usable
        lines = str(error).splitlines() or [type(error).__name__]
        return wrong("MLflow", f"{where.shown} refuses: {lines[0]}", needed=needed, remedy=remedy)
    spent = time.perf_counter() - began
    return good("MLflow", f"{where.shown} took a run with a file in {spent:.1f} s")


@dataclass(frozen=True, slots=True)
class Token:
    """How we show ourselves to the cluster at RAY_ADDRESS; '' without one."""

    value: str = field(repr=False)
    finding: Finding


def check_token(environment: Mapping[str, str] = os.environ) -> Token:
    """Whether we have a token for the cluster at RAY_ADDRESS, which is ours alone."""
    address, mode = environment.get("RAY_ADDRESS", ""), environment.get("RAY_AUTH_MODE", "")
    if address in ("", "local"):
        return Token("", good("token", "a Ray of this machine's own, which ends with the command"))
    if mode.lower() != "token":
        if is_alone(address):
            return Token("", good("token", f"none; {address} is this machine alone"))
        return Token(
            "",
            wrong(
                "token",
                f"RAY_AUTH_MODE is {mode or 'not set'!r} for {address}, which others can reach",
                needed="RAY_AUTH_MODE=token: a head without it runs anybody's code",
                remedy="start the cluster with a token, and set RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN_PATH",
            ),
        )
    if environment.get("RAY_AUTH_TOKEN"):
        return Token(environment["RAY_AUTH_TOKEN"], good("token", "from RAY_AUTH_TOKEN"))
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return _token_in(Path(named or "~/.ray/auth_token").expanduser())


def _token_in(path: Path) -> Token:
    def refuse(found: str, *, needed: str = "the cluster's token", remedy: str) -> Token:
        return Token("", wrong("token", found, needed=needed, remedy=remedy))

    try:
        mode, token = stat.S_IMODE(path.stat().st_mode), path.read_text().strip()
    except OSError as error:
        remedy = "set RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
        return refuse(f"{path} cannot be read ({error.strerror})", remedy=remedy)
    if not token:
        return refuse(f"{path} is empty", remedy="write the cluster's token into it")
    if mode & 0o077:
        said = f"{path} is of mode {mode:04o}: others of this machine can read it"
        return refuse(said, needed="a file of its owner alone", remedy=f"chmod 600 {path}")
    return Token(token, good("token", f"from {path}, its owner's alone"))


def is_alone(address: str) -> bool:
    """Whether no other machine reaches what is at this address of Ray's."""
    return all(map(_is_here, _addresses(address)))


def _addresses(address: str) -> Iterator[str]:
    """The IP addresses behind host:port; the host itself where nobody knows any."""
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]") or address
    if host == "auto":
        yield "127.0.0.1"
        return
    try:
        yield from {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        yield host


def _is_here(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
