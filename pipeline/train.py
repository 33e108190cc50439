"""Stage: Ray Train around pipeline.play, followed from the driver, ending in a registered
generator.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Before ray is imported. The poll decides how soon the end of a run, or a lost worker, is noticed.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from gan.config import ConfigError, check_sample
from pipeline.checkpoint import newest_nimg
from pipeline.dataset import ShardSet, open_shards
from pipeline.experiment import Experiment
from pipeline.extractors import absolute_name, load_extractor
from pipeline.play import Outcome
from pipeline.registry import Registered, register
from pipeline.run import JournalLine, Run, free_name, now_ms
from pipeline.shards import verify_shards
from pipeline.storage import open_storage
from pipeline.tracking import Backend, Tracker, backend, open_tracker
from pipeline.worker import work

log = logging.getLogger(__name__)

POLL_SEC = 0.5
PATIENCE_SEC = 5
REACH_SEC = 3
COLLECTIVE_TIMEOUT_SEC = 600
LOCAL_OBJECT_STORE_BYTES = 128 * 2**20  # no objects pass through Ray here
RAY_FOLDER = "ray"
# A Ray of our own reports to nobody, and its dozen side processes share the workers' cores.
QUIET_RAY = {
    "RAY_enable_metrics_collection": "false",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "false",
}


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to."""

    run: Run
    nimg: int
    finished: bool
    registered: Registered | None  # once finished
    where: Backend
    mlflow_url: str | None


@dataclass(frozen=True, slots=True)
class Watcher:
    """What the stage tells while it works.

    `begun` gets the run, MLflow's address, and the nimg that the run starts from.
    """

    begun: Callable[[Run, str, int], None]
    ticked: Callable[[JournalLine], None]
    said: Callable[[str], None]


class TrainingError(Exception):
    """A worker failed; the message holds the failing rank's own error."""


def train(experiment: Experiment, watcher: Watcher, *, again: bool = False) -> Trained:
    """Trains the experiment's run to its end and registers the best generator.

    A run that is complete is returned as it is; with `again`, another is begun beside it. On
    KeyboardInterrupt the workers checkpoint at their next tick and the run is returned unfinished;
    a second one gives up at once. Raises ConfigError for the user's mistakes, before anything is
    started, and TrainingError where the workers failed for good.
    """
    shards = open_shards(experiment.data.shards)
    check_sample(experiment.game, shards.sample)
    load_extractor(experiment.evaluate.extractor, shards.sample.shape)
    verify_shards(shards)
    where = backend(experiment.cluster.storage)
    _check_ray_address()
    name = experiment.name
    if again:
        name = free_name(open_storage(experiment.cluster.storage), name)
    run = Run.open(name, experiment, shards)
    if run.result is not None:
        result = run.result
        registered = Registered(**result["registered"])
        return Trained(run, result["nimg"], True, registered, where, result["mlflow_url"])
    with run.locked():
        return _train(run, shards, where, watcher)


def _train(run: Run, shards: ShardSet, where: Backend, watcher: Watcher) -> Trained:
    """The run, which nobody else is playing, to its end or to a stop."""
    run.withdraw_stop()
    experiment, start = run.experiment, newest_nimg(run.storage)
    # In the background, because importing and migrating MLflow takes as long as Ray's start.
    with ThreadPoolExecutor(1) as background:
        waiting = background.submit(open_tracker, where, run)
        if start >= experiment.turns.total_nimg:  # only the end was interrupted
            tracker = waiting.result()
            watcher.begun(run, tracker.url, start)
            outcome = Outcome(start, finished=True)
        else:
            watcher.said("starting Ray and MLflow")
            with _ray(experiment):
                tracker = waiting.result()
                watcher.begun(run, tracker.url, start)
                outcome = _play_on_ray(run, shards, _Follower(run, tracker, watcher))
    if not outcome.finished:
        tracker.finish("KILLED")
        return Trained(run, outcome.nimg, False, None, where, tracker.url)
    return _complete(run, outcome, tracker)


def _complete(run: Run, outcome: Outcome, tracker: Tracker) -> Trained:
    """Registers the best generator and closes the run; safe to do again where it was cut short."""
    best = run.best()
    assert best is not None, "a finished run has been judged at its end"
    judged = [line.time_ms for line in run.journal() if line.nimg == best.card.nimg]
    try:
        tracker.ship(list(run.journal(after=tracker.shipped)))
        tracker.log_best(best.card.scores, best.card.nimg, time_ms=(judged or [now_ms()])[0])
        registered = register(tracker.where, run, best, mlflow_run_id=tracker.run_id)
        tracker.tag({"forger.model_version": registered.uri})
        tracker.finish("FINISHED")
    except Exception as error:  # the training itself is safe in the run's folder
        raise TrainingError(
            f"{run.name} is trained, but MLflow did not take it: {type(error).__name__}: {error}"
        ) from error
    result = {
        "nimg": outcome.nimg,
        "best": best.folder,
        "registered": dataclasses.asdict(registered),
        "mlflow_url": tracker.url,
    }
    run.complete(result)
    return Trained(run, outcome.nimg, True, registered, tracker.where, tracker.url)


class _Follower:
    """Passes on what the workers journal: to the watcher's screen and to MLflow."""

    def __init__(self, run: Run, tracker: Tracker, watcher: Watcher):
        self.run, self.tracker, self.watcher = run, tracker, watcher
        self._seen = max((line.nimg for line in run.journal()), default=-1)
        self._complained = self.ticked = False
        self._waited_sec = 0

    def follow(self) -> None:
        """Tells what is new; a tracking server that fails is named once, and tried again."""
        for line in self.run.journal(after=self._seen):
            self._seen, self.ticked = line.nimg, True
            self.watcher.ticked(line)
        try:
            self.tracker.ship(list(self.run.journal(after=self.tracker.shipped)))
        except Exception as error:  # whatever tracking does, training goes on
            if not self._complained:
                log.warning("MLflow took no metrics (%s); training goes on, they are kept", error)
            self._complained = True

    def patience(self, since: float) -> float:
        """Says every few seconds that nothing has ticked yet; returns when it last did."""
        if self.ticked or time.monotonic() - since < PATIENCE_SEC:
            return since
        self._waited_sec += PATIENCE_SEC
        self.watcher.said(f"  the workers are starting: {self._waited_sec} s")
        return time.monotonic()

    def last(self) -> None:
        """Tells what is new, and says so where MLflow did not take all of it."""
        self.follow()
        if self.tracker.shipped < self._seen:
            self.watcher.said(
                f"some ticks did not reach MLflow; they are in {self.run.storage.uri}, "
                f"and the next command on this run sends them"
            )


def _play_on_ray(run: Run, shards: ShardSet, follower: _Follower) -> Outcome:
    """Runs the workers in a thread, so that this one can follow, and hear Ctrl-C."""
    trainer = _trainer(run, shards)
    ended: dict[str, Any] = {}

    over = (
        threading.Event()
    )  # not Thread.join, which an interrupt leaves believing that it is over

    def fit() -> None:
        try:
            ended["value"] = trainer.fit().return_value
        except BaseException as error:
            ended["error"] = error
        over.set()

    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    stopping, started = False, time.monotonic()
    while not over.is_set():
        try:
            follower.follow()
            started = follower.patience(started)
            over.wait(POLL_SEC)
        except KeyboardInterrupt:
            if stopping or not follower.ticked:  # before the first tick there is nothing to save
                follower.tracker.finish("KILLED")
                raise
            stopping = True
            run.request_stop()
            follower.watcher.said(
                "stopping at the next tick, with a checkpoint (again: at once, without)"
            )
    follower.last()
    run.withdraw_stop()
    shutil.rmtree(run.storage.path(RAY_FOLDER), ignore_errors=True)
    if "error" in ended:
        follower.tracker.finish("FAILED")
        raise TrainingError(_reason(ended["error"])) from ended["error"]
    if "diverged" in ended["value"]:
        follower.tracker.finish("FAILED")
        raise ConfigError([ended["value"]["diverged"]])
    return Outcome(**ended["value"])


def _trainer(run: Run, shards: ShardSet) -> TorchTrainer:
    cluster = run.experiment.cluster
    extractor = absolute_name(run.experiment.evaluate.extractor)
    job = {
        "run": run.storage.uri,
        "experiment": run.experiment.replace("evaluate.extractor", extractor).to_dict(),
        "shards": shards.uri,
        "threads": cluster.cpus_per_worker,
    }
    return TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SEC),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=_use_gpu(run.experiment),
            resources_per_worker={"CPU": cluster.cpus_per_worker},
        ),
        # A name of its own for each attempt: what resuming needs is in the run's folder, and Ray
        # takes an old name for a run that is over.
        run_config=RunConfig(
            name=f"{run.name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(run.storage.path(RAY_FOLDER)),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )


def _use_gpu(experiment: Experiment) -> bool:
    """Whether each worker gets a GPU. Raises ConfigError where they are asked for but missing."""
    device, workers = experiment.cluster.device, experiment.cluster.workers
    have = ray.cluster_resources()
    gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 0))
    wanted = workers * experiment.cluster.cpus_per_worker
    if cpus < wanted:
        raise ConfigError(
            [f"cluster.workers x cluster.cpus_per_worker ask for {wanted} CPUs, Ray has {cpus}"]
        )
    if device == "cuda" and gpus < workers:
        raise ConfigError(
            [f"cluster.device = 'cuda' with {workers} workers needs as many GPUs, Ray has {gpus}"]
        )
    return device == "cuda" or (device == "auto" and gpus >= workers)


@contextmanager
def _ray(experiment: Experiment):
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
        cluster = experiment.cluster
        wanted = cluster.workers * cluster.cpus_per_worker
        have = os.cpu_count() or 1
        if wanted > have:
            log.warning(
                "%d workers x %d CPUs share %d CPUs",
                cluster.workers,
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


def _check_ray_address() -> None:
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


def _reason(error: BaseException) -> str:
    """The failing rank's own error, where Ray wraps it in its own."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return f"{type(error).__name__}: {error}"
    rank, first = sorted(failures.items())[0]
    return f"worker {rank} failed: {first}"
