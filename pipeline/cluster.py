"""The connection to Ray: the cluster at RAY_ADDRESS, or a Ray of this machine's own."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

# Before ray is imported. The poll decides how soon the end of a run, or a lost worker, is noticed;
# a raylet has 30 s to start where nothing else is said, which a busy machine exceeds.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

import psutil  # isort: skip  (after ray, which brings it)
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune import PlacementGroupFactory

from gan.config import ConfigError
from pipeline.experiment import ClusterConfig
from pipeline.meeting import Meeting

log = logging.getLogger(__name__)

REACH_SEC = 3
DASHBOARD_PORT = "8265"  # where Ray takes jobs; no driver is let in
COLLECTIVE_TIMEOUT_SEC = 600
GOODBYE_SEC = 2.0
CONTROLLER = "TrainController"
PLACE_SEC = 30  # for placing workers: it is asked for room that is there
NODE_ID = "ray.io/node-id"  # a label that Ray gives each node
LEADER_BYTES = 2**20  # a token: what it really takes is Ray's to see
LOCAL_OBJECT_STORE_BYTES = 128 * 2**20  # no objects pass through Ray here
# Of a Ray of our own, which reports to nobody and whose side processes share the workers' cores.
QUIET_RAY = {
    "RAY_enable_metrics_collection": "false",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "false",
    # It never comes back under its old address: what outlives it need not wait a minute for it.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
}


def check_address() -> None:
    """Knocks at RAY_ADDRESS, because Ray itself keeps trying for a minute."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit() or port == DASHBOARD_PORT:
        raise ConfigError(
            [
                f"RAY_ADDRESS must be host:port of the cluster's head (6379 by default), "
                f"got {address!r}; from outside the cluster set RAY_API_SERVER_ADDRESS "
                f"(http://host:{DASHBOARD_PORT}) and use `forger submit`"
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
        ours = _controllers() if address else _ray_processes()
        ray.shutdown()
        _, left = psutil.wait_procs(ours, timeout=GOODBYE_SEC)
        for process in left:
            with suppress(psutil.Error):  # gone at this moment, or another user's
                process.kill()


def actors(class_name: str, *, state: str | None = "ALIVE") -> list[dict[str, Any]]:
    """What Ray's table says of this driver's actors of a class, in any state where `state` is
    None; [] where Ray does not tell.
    """
    # The state API proper needs a dashboard; this asks the cluster's own table, as it does.
    from ray._private.state import state as cluster_state

    try:
        job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        table = cluster_state.actor_table(None, job, state).values()
        return [entry for entry in table if entry["ActorClassName"] == class_name]
    except Exception as error:
        log.debug("cannot ask for actors: %s", error)
        return []


def _controllers() -> list[psutil.Process]:
    """The processes of this driver's Train controllers on this machine, those of past attempts
    too: one was seen to outlive its actor by half a minute. What a lost head does not answer in
    GOODBYE_SEC stays unknown: Ray itself would wait for it without end.
    """
    found: list[psutil.Process] = []
    asking = threading.Thread(target=lambda: found.extend(_told_controllers()), daemon=True)
    asking.start()
    asking.join(GOODBYE_SEC)
    return list(found)


def _told_controllers() -> list[psutil.Process]:
    found = []
    here = ray.util.get_node_ip_address()
    for entry in actors(CONTROLLER, state=None):
        with suppress(psutil.Error):
            if entry["Address"]["IPAddress"] == here:
                process = psutil.Process(entry["Pid"])
                if CONTROLLER in " ".join(process.cmdline()):  # else the number is another's
                    found.append(process)
    return found


def _ray_processes() -> list[psutil.Process]:
    """Of a Ray of our own: who is left when it has ended waits for what does not come back."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name() in ("raylet", "gcs_server"):
                found += [child, *child.children(recursive=True)]
    return found


def trainer(
    work: Callable[[dict[str, Any]], Any],
    job: dict[str, Any],
    *,
    cluster: ClusterConfig,
    name: str,
    folder: str,
    workers: int | None = None,
    gpus: bool | None = None,
    without: frozenset[str] = frozenset(),
    max_failures: int = 0,
) -> TorchTrainer:
    """What runs `work(job)` on so many of the cluster's workers (the most it allows, where left
    out), joined in one process group, on none of the nodes `without`.

    Ray keeps its own records in `folder`. Each attempt has a name of its own there, because Ray
    takes a name that it knows for work that is over. With `max_failures` Ray itself tries again.
    Raises ConfigError where the cluster is too small.
    """
    # Read by Ray Train's controller: a worker that is frozen as a whole cannot end itself.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(cluster.hang_sec)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACE_SEC))
    return TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=Meeting(timeout_s=COLLECTIVE_TIMEOUT_SEC),
        scaling_config=ScalingConfig(
            num_workers=workers or cluster.max_workers,
            use_gpu=gives_gpus(cluster) if gpus is None else gpus,
            resources_per_worker={"CPU": cluster.cpus_per_worker},
            label_selector={NODE_ID: f"!in({', '.join(sorted(without))})"} if without else None,
        ),
        run_config=RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=folder,
            failure_config=FailureConfig(
                max_failures=max_failures,
                controller_failure_limit=max_failures,
                max_preemption_failures=max_failures,
            ),
        ),
    )


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


def gives_gpus(cluster: ClusterConfig) -> bool:
    """Whether each worker gets a GPU.

    Raises ConfigError where they, or the CPUs, are asked for but missing; what an autoscaler may
    add counts as being there.
    """
    device, workers = cluster.device, cluster.min_workers
    have, planned = ray.cluster_resources(), planned_resources()
    gpus, cpus = (int(max(have.get(k, 0), planned.get(k, 0))) for k in ("GPU", "CPU"))
    wanted = workers * cluster.cpus_per_worker
    if cpus < wanted:
        raise ConfigError(
            [f"cluster.workers x cluster.cpus_per_worker ask for {wanted} CPUs, Ray has {cpus}"]
        )
    if device == "cuda" and gpus < workers:
        raise ConfigError(
            [f"cluster.device = 'cuda' with {workers} workers needs as many GPUs, Ray has {gpus}"]
        )
    return device == "cuda" or (device == "auto" and gpus >= workers)


def planned_resources() -> dict[str, float]:
    """The most that the cluster's autoscaler may make of it; {} where it has none."""
    if not os.environ.get("RAY_ADDRESS"):
        return {}
    try:  # as Ray Train itself asks; there is no public call
        from ray._private.state import state

        return dict(state.get_max_resources_from_cluster_config() or {})
    except Exception as error:
        log.debug("cannot ask for the autoscaler's plans: %s", error)
        return {}


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
