"""Stage: all checks of an experiment, in the order in which their failing would be met."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gan.config import ConfigError
from pipeline.cluster import (
    check_address,
    connected,
    gives_gpus,
    planned_resources,
    trainer,
)
from pipeline.dataset import ShardSet
from pipeline.experiment import ClusterConfig, Experiment
from pipeline.failures import first_failure
from pipeline.folder import Folder
from pipeline.nodes import ask_for_workers, draining_nodes, room, staying_nodes
from pipeline.preflight import verdicts
from pipeline.preflight.findings import Finding, good, refused, skipped, wrong
from pipeline.preflight.head import check_head
from pipeline.preflight.here import (
    check_data_set,
    check_storage,
    check_token,
    check_tracking,
    is_alone,
    new_mark,
    sweep_marks,
)
from pipeline.preflight.verdicts import Estimate
from pipeline.preflight.worker import job_of, look, software
from pipeline.storage import Storage, StorageError, open_storage

log = logging.getLogger(__name__)

LOOK_SEC = 1.0
SMALLER = "lower cluster.workers, set another cluster.device, or add nodes"


@dataclass(frozen=True, slots=True)
class Checked:
    """What all checks came to; `estimate` is None where the game was not played."""

    findings: tuple[Finding, ...]
    estimate: Estimate | None

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.state == "good" for finding in self.findings)


def check(
    experiment: Experiment,
    told: Callable[[Finding], None],
    *,
    said: Callable[[str], None],
    wait_sec: float,
    price_per_hour: float | None = None,
) -> Checked:
    """Looks at everything that the experiment needs, here and on its workers, and tells each
    finding as it comes. `said` gets what is waited for.

    Nothing is left behind but a deleted run in MLflow. Where an autoscaler has to make nodes, they
    are waited for, `wait_sec` at most. `price_per_hour` is of one worker.
    """
    findings: list[Finding] = []

    def tell(each: Finding) -> None:
        findings.append(each)
        told(each)

    storage, mark = open_storage(experiment.cluster.storage), new_mark()
    estimate = None
    try:
        with ThreadPoolExecutor(1) as beside:  # its answer takes as long as Ray's start
            tracking = beside.submit(check_tracking, experiment.cluster.storage)
            shards, data = check_data_set(experiment)
            for each in (*data, check_storage(storage, mark), _token()):
                tell(each)
            usable = shards is not None and all(f.state == "good" for f in findings)
            because = next((f.what for f in findings if f.state != "good"), "")
            if usable:
                assert shards is not None
                place = _Place(experiment, shards, storage, mark)
                facts = _on_workers(place, tell, said, wait_sec=wait_sec)
                if facts:
                    estimate = _judged(place, facts, tell, price_per_hour)
            else:
                tell(skipped("workers", f"{because} comes first"))
            tell(tracking.result())
    finally:
        with _best_effort():
            sweep_marks(storage, mark)
    return Checked(tuple(findings), estimate)


def _token() -> Finding:
    """The token that we have, and what the head says to it."""
    address, token = os.environ.get("RAY_ADDRESS", ""), check_token()
    if token.finding.state != "good" or address in ("", "auto", "local"):
        return token.finding
    return check_head(address, token.value, alone=is_alone(address)) or token.finding


@contextmanager
def _best_effort() -> Iterator[None]:
    """What cannot be tidied is named; what ended the check is worth more."""
    try:
        yield
    except StorageError as error:
        log.warning("the check's files may be left in the storage: %s", error)


@dataclass(frozen=True, slots=True)
class _Place:
    """What is played on what, and where the marks are."""

    experiment: Experiment
    shards: ShardSet
    storage: Storage
    mark: str


def _on_workers(
    place: _Place,
    tell: Callable[[Finding], None],
    said: Callable[[str], None],
    *,
    wait_sec: float,
) -> list[dict[str, Any]] | None:
    """The facts of every worker; None, with a finding, where there are none."""
    cluster, needed = place.experiment.cluster, "a Ray cluster that takes this driver"
    try:
        check_address()
        with connected(cluster):
            gpus, found = resources(cluster, wait_sec=wait_sec, said=said)
            tell(found)
            if found.state != "good":
                return None
            workers = room(cluster, gpus=gpus, without=draining_nodes())
            facts = _looked(place, workers=workers, gpus=gpus)
    except ConfigError as error:
        for each in refused(
            "cluster", error, needed=needed, remedy="set RAY_ADDRESS, or unset it"
        ):
            tell(each)
        return None
    if isinstance(facts, Finding):
        tell(facts)
        return None
    return facts


def resources(
    cluster: ClusterConfig, *, wait_sec: float, said: Callable[[str], None] = log.info
) -> tuple[bool, Finding]:
    """Whether workers get GPUs, and whether there is room for them, or comes within the time where
    an autoscaler makes it. Ray must be connected.
    """
    least = cluster.min_workers
    needed = f"{least} worker(s) of {cluster.cpus_per_worker} CPU(s) on nodes that stay"
    try:
        gpus = gives_gpus(cluster)
    except ConfigError as error:
        return False, refused("cluster", error, needed=needed, remedy=SMALLER)[0]
    began = time.monotonic()
    free = room(cluster, gpus=gpus, without=draining_nodes())
    if free < least and planned_resources():
        said(f"waiting for the autoscaler: there is room for {free} of {least} worker(s)")
        ask_for_workers(cluster, least, gpus=gpus)
        while free < least and time.monotonic() - began < wait_sec:
            time.sleep(LOOK_SEC)
            free = room(cluster, gpus=gpus, without=draining_nodes())
        ask_for_workers(cluster, 0, gpus=gpus)
    what, nodes = "a GPU each" if gpus else "CPUs", len(staying_nodes())
    waited = time.monotonic() - began
    found = f"room for {free} of {least} to {cluster.max_workers} worker(s) with {what}"
    found += f" on {nodes} node(s)" + (f", after {waited:.0f} s" if waited > LOOK_SEC else "")
    if free < least:
        remedy = f"wait for others to end, or {SMALLER}"
        return gpus, wrong("cluster", found, needed=needed, remedy=remedy)
    return gpus, good("cluster", found)


def _looked(place: _Place, *, workers: int, gpus: bool) -> list[dict[str, Any]] | Finding:
    """The facts of every worker; where they failed as a whole, why."""
    folder = tempfile.mkdtemp(prefix="forger-ray-")
    cluster = place.experiment.cluster
    job = job_of(place.experiment, place.shards.uri, place.storage.uri, place.mark)
    fitting = trainer(
        look, job, cluster=cluster, name=place.mark, folder=folder, workers=workers, gpus=gpus
    )
    try:
        facts = fitting.fit().return_value
        assert facts is not None, "every rank tells"
        return facts
    except ConfigError:
        raise
    except Exception as error:  # Ray's, of whatever class: the first worker's own words count
        text, _, remedy = str(first_failure(error)).partition("; ")
        return wrong(
            "workers",
            text,
            needed="workers that play a few rounds",
            remedy=remedy or "see the reason",
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _judged(
    place: _Place,
    facts: list[dict[str, Any]],
    tell: Callable[[Finding], None],
    price_per_hour: float | None,
) -> Estimate | None:
    experiment, shards, storage = place.experiment, place.shards, place.storage
    tell(verdicts.same_software(software(), facts))
    seen = {name: storage.read(name) for name in storage.names(place.mark)}
    tell(verdicts.shared_storage(facts, seen, storage.uri))
    tell(verdicts.read_data(shards, facts))
    if shards.encoding != "raw" or not isinstance(open_storage(shards.uri), Folder):
        tell(verdicts.room_for_cache(experiment, shards, facts))
    if not all("scalars" in each for each in facts):
        tell(skipped("a real turn", "a worker cannot read its data"))
        return None
    tell(verdicts.sound_turn(facts))
    tell(verdicts.enough_memory(facts))
    tell(verdicts.wide_link(facts))
    return verdicts.estimate(experiment, shards, facts, price_per_hour=price_per_hour)
