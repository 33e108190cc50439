"""The cluster's nodes as a run sees them: who stays, with room for how many, and our processes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster import actors, planned_resources  # before ray: it sets Ray's environment

import psutil  # isort: skip
import ray
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.experiment import ClusterConfig
from pipeline.hang import stacks_in

log = logging.getLogger(__name__)

KNOCK_SEC = 2.0
TASK_SEC = 15.0
GOODBYE_SEC = 3.0
WORKER = "RayTrainWorker"


@dataclass(frozen=True, slots=True)
class Process:
    """One of our workers."""

    node: str
    address: str
    pid: int


@dataclass(frozen=True, slots=True)
class Left:
    """What an attempt that failed left behind: frozen processes, and stacks by file name."""

    frozen: tuple[Process, ...]
    stacks: dict[str, str]


def draining_nodes() -> frozenset[str]:
    """The ids of the nodes that were told to go, in seconds to minutes."""
    # As Ray Train's own watcher asks; there is no public call, and without an answer the loss of
    # the node is met when it happens.
    try:
        return frozenset(_state().get_draining_nodes())
    except Exception as error:
        log.debug("cannot ask for draining nodes: %s", error)
        return frozenset()


def silent_nodes() -> frozenset[str]:
    """The nodes that Ray has not given up yet, but whose raylet does not answer any more.

    Ray itself takes up to half a minute to see that a node is gone.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(min(32, len(nodes) or 1)) as pool:
        answers = list(pool.map(_answers, nodes))
    return frozenset(node["NodeID"] for node, yes in zip(nodes, answers, strict=True) if not yes)


def _answers(node: dict[str, Any]) -> bool:
    where = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        socket.create_connection(where, timeout=KNOCK_SEC).close()
    except OSError:
        return False
    return True


def staying_nodes(without: Iterable[str] = ()) -> frozenset[str]:
    """The ids of the nodes that are alive, and not among `without`."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"]) - frozenset(without)


def room(
    cluster: ClusterConfig, *, gpus: bool, without: Iterable[str] = (), free: bool = True
) -> int:
    """How many workers the nodes have room for, apart from those `without`: free now, or, not
    `free`, if they held nothing else. At most as many as the cluster section allows.
    """
    state, found = _state(), 0
    have = state.available_resources_per_node() if free else state.total_resources_per_node()
    for node in staying_nodes(without):
        mine = have.get(node, {})
        held = int(mine.get("CPU", 0)) // cluster.cpus_per_worker
        found += min(held, int(mine.get("GPU", 0))) if gpus else held
    return min(found, cluster.max_workers)


def our_workers() -> list[Process]:
    """The workers of this driver that are alive; [] where Ray does not tell."""
    return [
        Process(a["Address"]["NodeID"], a["Address"]["IPAddress"], a["Pid"])
        for a in actors(WORKER)
    ]


def clear_away(workers: Sequence[Process], *, folder: Path, prefix: str) -> Left:
    """Ends what is left of an attempt's workers on every node that answers, and brings what they
    wrote as they hung or crashed: files in `folder` that begin with `prefix`.

    A worker that is frozen whole survives Ray's own clean-up, and would write again when it thaws.
    """
    frozen, stacks, tasks = [], {}, []
    here, there = ray.util.get_node_ip_address(), staying_nodes()
    for address in sorted({worker.address for worker in workers}):
        mine = {w.pid: w for w in workers if w.address == address and w.node in there}
        lost = {w.pid: w for w in workers if w.address == address} if address == here else mine
        asked = list(lost), str(folder), prefix
        if address == here:
            tasks.append((lost, _clear_node(*asked)))
        elif mine:
            node = next(iter(mine.values())).node
            task = ray.remote(_clear_node).options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            tasks.append((mine, task.remote(*asked)))
    for each, answer in tasks:
        try:
            found = (
                ray.get(answer, timeout=TASK_SEC) if isinstance(answer, ray.ObjectRef) else answer
            )
        except Exception as error:
            log.debug("cannot clear a node: %s", error)
            continue
        frozen += [each[pid] for pid in found[0]]
        stacks |= found[1]
    return Left(tuple(frozen), stacks)


def _clear_node(pids: list[int], folder: str, prefix: str) -> tuple[list[int], dict[str, str]]:
    """On a node: ends these workers; which were frozen, and the stacks that they left."""
    frozen, left = [], []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if WORKER in " ".join(process.cmdline()):  # else the number is another's by now
                left.append(process)
                if process.status() == psutil.STATUS_STOPPED:
                    frozen.append(pid)
                    process.kill()
        except psutil.Error:
            continue
    _, still = psutil.wait_procs(left, timeout=GOODBYE_SEC)
    for process in still:
        process.kill()
    psutil.wait_procs(still, timeout=GOODBYE_SEC)
    return frozen, stacks_in(Path(folder), prefix)


def free_reservations() -> None:
    """Releases the room that this driver's attempts still hold; for use between attempts.

    A controller that was killed gave nothing back, and Ray itself waits for the driver's end.
    """
    # Ray's own cleaner asks the dashboard, which a Ray of our own has not.
    try:
        job = ray.get_runtime_context().get_job_id()
        table: Any = getattr(gcs_pb2, "PlacementGroupTableData")  # noqa: B009
        for data in _state()._connect_and_get_accessor().get_placement_group_table():
            group = table.FromString(data)
            if group.state != table.REMOVED and group.creator_job_id.hex() == job:
                name = ray.PlacementGroupID(group.placement_group_id)
                remove_placement_group(PlacementGroup(name))
    except Exception as error:
        log.warning("cannot give reservations back: %s", error)


def ask_for_workers(cluster: ClusterConfig, count: int, *, gpus: bool) -> None:
    """Tells the cluster's autoscaler, where it has one, to keep room for so many workers."""
    if not planned_resources():
        return
    from ray.autoscaler.sdk import request_resources

    one = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if gpus else {})
    try:
        request_resources(bundles=[one] * count) if count else request_resources(num_cpus=0)
    except Exception as error:  # an older autoscaler; it scales by what is queued then
        log.warning("the autoscaler was not asked for %d workers: %s", count, error)


def _state() -> Any:
    from ray._private.state import state

    return state
