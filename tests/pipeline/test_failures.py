"""What is blamed for a failed attempt, and whether it is tried again."""

from __future__ import annotations

import pickle
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from gan.config import ConfigError
from pipeline import fits
from pipeline.data_config import DataConfig
from pipeline.experiment import Experiment
from pipeline.failures import Budget, Failure, Kind, first_failure, hung_or_crashed, with_stacks
from pipeline.nodes import Left
from pipeline.storage import StorageError, StorageMistake

WORKER = "Worker info: Worker(metadata=ActorMetadata(node_ip='10.0.0.7', pid=4549,))"
GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
GONE = Exception(
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
    "exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
    "common causes include: (1) the process was killed by the OOM killer due to high memory "
    "usage, consider enabling --enable-resource-isolation to prevent kills of OOMing nodes by "
    "the OOM killer"
)


def blamed(**failures: Exception) -> Failure:
    ranks = {int(name[1:]): error for name, error in failures.items()}
    return first_failure(WorkerGroupError("", ranks))


def test_a_killed_worker_is_blamed_and_not_the_peers_that_lost_it():
    failure = blamed(r0=GLOO, r1=WorkerHealthCheckFailedError(WORKER, GONE))
    assert failure.kind is Kind.DIED
    assert str(failure) == (
        "worker 1 died without a word, as by SIGKILL or the kernel's out-of-memory killer "
        "(process 4549 on 10.0.0.7)"
    )


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (KeyError("lr"), Kind.RAISED, "worker 1 failed: KeyError: 'lr'"),
        (StorageError("no room: 3 B free"), Kind.FINAL, "worker 1 failed: no room: 3 B free"),
        (StorageMistake("there is no bucket"), Kind.FINAL, "worker 1 failed: there is no bucket"),
        (ConfigError(["a is 1", "b is 2"]), Kind.FINAL, "worker 1 failed: a is 1\nb is 2"),
        (MemoryError("x"), Kind.MEMORY, "set turns.micro_batch"),
        (torch.OutOfMemoryError("CUDA out of memory"), Kind.MEMORY, "set turns.micro_batch"),
        (ConnectionError("connection refused"), Kind.RAISED, "ConnectionError"),
        (
            WorkerHealthCheckFailedError(
                WORKER, Exception("Task was killed due to the node running low on memory.")
            ),
            Kind.MEMORY,
            "worker 1 was killed because the node ran out of memory (process 4549 on 10.0.0.7)",
        ),
        (WorkerHealthCheckTimeoutError(WORKER), Kind.FROZEN, "does not answer any more"),
    ],
)
def test_a_workers_own_error_comes_before_the_ends_of_its_peers(error, kind, words):
    failure = blamed(r0=GLOO, r1=pickle.loads(pickle.dumps(error)), r2=GLOO)
    assert failure.kind is kind
    assert words in str(failure)


def test_without_a_failed_worker_ray_train_itself_is_named():
    assert str(first_failure(ValueError("odd"))) == "Ray Train failed: odd"


def test_stacks_tell_a_crash_from_a_hang():
    hang = {"1-2-0.txt": "Timeout (0:00:05)!\nThread", "1-2-10.txt": "Timeout (0:00:05)!"}
    assert hung_or_crashed(hang) == ("workers 0, 10 made no progress", Kind.FROZEN)
    crash = hang | {"1-2-3.txt": "Fatal Python error: Segmentation fault\n\nCurrent thread"}
    assert hung_or_crashed(crash) == ("worker 3 crashed (Segmentation fault)", Kind.DIED)
    assert hung_or_crashed({}) is None


@pytest.mark.parametrize(
    ("failure", "before"),
    [
        (blamed(r0=GLOO, r1=WorkerHealthCheckFailedError(WORKER, GONE)), ""),
        (blamed(r0=GLOO, r1=KeyError("lr")), "worker 1 failed: KeyError: 'lr'; "),
        (first_failure(ValueError("actor died")), "Ray Train failed: actor died; "),
    ],
)
def test_stacks_say_more_than_a_lost_process_but_not_than_an_error(failure, before):
    kept = {"0-1-1.txt": "Fatal Python error: Aborted\n"}
    told = with_stacks(failure, kept, hang_sec=8, folder="runs/a/hangs")
    assert told == f"{before}worker 1 crashed (Aborted); its stacks: runs/a/hangs/0-1-1.txt"
    assert with_stacks(failure, {}, hang_sec=8, folder="runs/a/hangs") == str(failure)


def test_progress_renews_the_budget_and_a_crash_loop_ends():
    budget, died = Budget(2, nimg=0), Failure(0, Kind.DIED, "died")
    assert [budget.allows(died, nimg=nimg) for nimg in (0, 0, 16, 16, 16)] == [
        True, True, True, True, False
    ]  # fmt: skip


def test_memory_is_tried_once_more_and_what_is_final_not_at_all():
    budget = Budget(9, nimg=0)
    memory = Failure(0, Kind.MEMORY, "")
    assert [budget.allows(memory, nimg=0) for _ in range(2)] == [True, False]
    assert not budget.allows(Failure(0, Kind.FINAL, ""), nimg=16)


def test_the_pause_doubles_to_half_a_minute_with_jitter():
    budget, dice = Budget(20, nimg=0), random.Random(0)
    pauses = []
    for _ in range(10):
        budget.allows(Failure(0, Kind.DIED, ""), nimg=0)
        pauses.append(budget.wait_sec(dice))
    for pause, longest in zip(pauses, [0, 1, 2, 4, 8, 16, 30, 30, 30, 30], strict=True):
        assert longest / 2 <= pause <= longest


def test_a_loss_is_noted_before_its_stacks_and_before_ray_is_asked_for_anything(monkeypatch):
    """Where this machine's raylet died, Ray ends the driver as soon as it is asked."""
    done: list[str] = []
    storage = SimpleNamespace(
        uri="s3://bucket/runs/one",
        names=lambda prefix="": [],
        write=lambda *file: done.append(file[0]),
    )
    run: Any = SimpleNamespace(
        experiment=Experiment(name="one", data=DataConfig(shards="none")), storage=storage
    )
    stacks = {"1-2-0.txt": "stacks"}
    monkeypatch.setattr(fits, "clear_away", lambda *_, **__: Left((), stacks))

    def ended() -> None:
        raise SystemExit

    monkeypatch.setattr(fits, "free_reservations", ended)
    events: Any = SimpleNamespace(add=lambda kind, why: done.append(why))
    unused: Any = None
    attempts = fits._Attempts(run, unused, 1, unused, unused, unused, events, unused)
    lost = WorkerGroupError("", {0: WorkerHealthCheckFailedError(WORKER, GONE)})
    with pytest.raises(SystemExit):
        attempts._failed(lost, number=2)
    assert done == [
        "worker 0 made no progress for 300 s; its stacks: s3://bucket/runs/one/hangs/1-2-0.txt",
        "hangs/1-2-0.txt",
    ]
