"""The connection to Ray: the cluster at RAY_ADDRESS, or a Ray of this machine's own."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Before ray is imported. The poll decides how soon the end of a run, or a lost worker, is noticed.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune import PlacementGroupFactory

from gan.config import ConfigError
from pipeline.experiment import ClusterConfig

log = logging.getLogger(__name__)

REACH_SEC = 3
COLLECTIVE_TIMEOUT_SEC = 600
LEADER_BYTES = 2**20  # a token: what it really takes is Ray's to see
LOCAL_OBJECT_STORE_BYTES = 128 * 2**20  # no objects pass through Ray here
# A Ray of our own reports to nobody, and its dozen side processes share the workers' cores.
QUIET_RAY = {
    "RAY_enable_metrics_collection": "false",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "false",
}


def check_address() -> None:
    """Knocks at RAY_ADDRESS, because Ray itself keeps trying for a minute."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        raise ConfigError(
            [
                f"RAY_ADDRESS must be host:port of the cluster's head (6379 by default), "
                f"got {address!r}"
            ]
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SEC).close()
    except OSError as error:
        raise ConfigError(
            [
                f"RAY_ADDRESS = {address!r} does not answer within {REACH_SEC} s ({error}); "
                f"start the head, or unset the variable to use a Ray of this machine's own"
            ]
        ) from None


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[None]:
    """A connection to the cluster at RAY_ADDRESS, or a Ray of our own that ends with the block."""
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        yield
        return
    if address:
        try:
            ray.init(**quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError([f"RAY_ADDRESS = {address!r} cannot be joined: {error}"]) from None
    else:
        wanted = cluster.max_workers * cluster.cpus_per_worker
        have = os.cpu_count() or 1
        if wanted > have:
            log.warning(
                "%d workers x %d CPUs share %d CPUs",
                cluster.max_workers,
                cluster.cpus_per_worker,
                have,
            )
        os.environ.update({k: v for k, v in QUIET_RAY.items() if k not in os.environ})
        ray.init(
            address="local",
            num_cpus=max(wanted, have),
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()


def trainer(
    work: Callable[[dict[str, Any]], Any],
    job: dict[str, Any],
    *,
    cluster: ClusterConfig,
    name: str,
    folder: str,
    workers: int | None = None,
    max_failures: int = 0,
) -> TorchTrainer:
    """What runs `work(job)` on so many of the cluster's workers (the most it allows, where left
    out), joined in one process group.

    Ray keeps its own records in `folder`. Each attempt has a name of its own there, because Ray
    takes a name that it knows for work that is over. With `max_failures` Ray itself tries again.
    Raises ConfigError where the cluster is too small.
    """
    # Read by Ray Train's controller: a worker that is frozen as a whole cannot end itself.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(cluster.hang_sec)
    return TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SEC),
        scaling_config=ScalingConfig(
            num_workers=workers or cluster.max_workers,
            use_gpu=gives_gpus(cluster),
            resources_per_worker={"CPU": cluster.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=folder,
            failure_config=FailureConfig(
                max_failures=max_failures, controller_failure_limit=max_failures
            ),
        ),
    )


def draining_nodes() -> frozenset[str]:
    """The ids of the nodes that were told to go, in seconds to minutes."""
    # As Ray Train's own watcher asks; there is no public call, and without an answer the loss of
    # the node is met when it happens.
    try:
        from ray._private.state import state

        return frozenset(state.get_draining_nodes())
    except Exception as error:
        log.debug("cannot ask for draining nodes: %s", error)
        return frozenset()


def room(cluster: ClusterConfig) -> int:
    """How many workers the nodes hold that are there to stay, at most as many as it allows."""
    leaving, with_gpus, found = draining_nodes(), gives_gpus(cluster, missing_ok=True), 0
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in leaving:
            have = node["Resources"]
            held = int(have.get("CPU", 0)) // cluster.cpus_per_worker
            found += min(held, int(have.get("GPU", 0))) if with_gpus else held
    return min(found, cluster.max_workers)


def each_on_ray(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    cluster: ClusterConfig,
    at_once: int | None = None,
) -> Iterator[Any]:
    """Calls `function(*job)` for every job on Ray, as many at once as the cluster section has
    workers where `at_once` does not say otherwise; yields the results as they come.

    A task whose process or node is lost is run again, up to `cluster.max_failures` times; the
    function's own error is raised as it is. Raises ConfigError where the cluster is too small.
    """
    task = ray.remote(function).options(
        num_cpus=cluster.cpus_per_worker,
        num_gpus=1 if gives_gpus(cluster) else 0,
        max_retries=cluster.max_failures,
    )
    waiting, running = list(reversed(jobs)), []
    try:
        while waiting or running:
            while waiting and len(running) < (at_once or cluster.max_workers):
                running.append(task.remote(*waiting.pop()))
            ended, running = ray.wait(running, num_returns=1)
            yield ray.get(ended[0])
    except RayTaskError as error:
        raise error.cause from error
    finally:
        for left in running:
            ray.cancel(left)


def gives_gpus(cluster: ClusterConfig, *, missing_ok: bool = False) -> bool:
    """Whether each worker gets a GPU.

    Raises ConfigError where they, or the CPUs, are asked for but missing; with `missing_ok`, as
    for a cluster that has just lost a node, it does not.
    """
    device, workers = cluster.device, cluster.min_workers
    have = ray.cluster_resources()
    gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 0))
    wanted = workers * cluster.cpus_per_worker
    if cpus < wanted and not missing_ok:
        raise ConfigError(
            [f"cluster.workers x cluster.cpus_per_worker ask for {wanted} CPUs, Ray has {cpus}"]
        )
    if device == "cuda" and gpus < workers and not missing_ok:
        raise ConfigError(
            [f"cluster.device = 'cuda' with {workers} workers needs as many GPUs, Ray has {gpus}"]
        )
    return device == "cuda" or (device == "auto" and gpus >= workers)


def slots(cluster: ClusterConfig) -> int:
    """How many trials of this cluster section Ray holds at once. Raises ConfigError for none."""
    have = ray.cluster_resources()
    count = int(have.get("CPU", 0)) // (cluster.max_workers * cluster.cpus_per_worker)
    if gives_gpus(cluster):  # which says what is missing for a single one
        count = min(count, int(have.get("GPU", 0)) // cluster.max_workers)
    return count


def trial_resources(cluster: ClusterConfig) -> PlacementGroupFactory:
    """What Ray Tune sets aside for a trial.

    One worker plays in the trial's own process. More are Ray Train's, which sets theirs aside; the
    process that leads them must cost none of their CPUs, and Tune refuses one that costs nothing.
    """
    if cluster.max_workers > 1:
        return PlacementGroupFactory([{"memory": LEADER_BYTES}])
    gpus = {"GPU": 1} if gives_gpus(cluster) else {}
    return PlacementGroupFactory([{"CPU": cluster.cpus_per_worker, **gpus}])


def gpu_of_this_process() -> str:
    """The device that Ray gave a task or an actor: "cuda" (the only one it sees), or "cpu"."""
    return "cuda" if ray.get_gpu_ids() else "cpu"
