"""One rank of a run, in a process of Ray Train; apart from the stage, whose imports it does not
need.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray.train.torch import get_device

from gan.config import ConfigError
from gan.world import World
from pipeline.dataset import ShardSet, open_shards
from pipeline.experiment_file import experiment_from_dict
from pipeline.extractors import absolute_name, absolute_weights
from pipeline.hang import Alive
from pipeline.host import DivergedError
from pipeline.play import play
from pipeline.run import Run, changes_of_data
from pipeline.storage import open_storage

HANGS = "hangs"  # in a run: what workers were doing as they hung or crashed


def job_of(
    run: Run,
    shards: ShardSet,
    *,
    until_nimg: int | None = None,
    token: int = 0,
    attempt: int = 0,
) -> dict[str, Any]:
    """What a worker is told; names in it hold in any folder, because Ray runs it in one of its
    own.
    """
    evaluate = run.experiment.evaluate
    told = dataclasses.replace(
        evaluate,
        extractor=absolute_name(evaluate.extractor),
        weights=absolute_weights(evaluate.weights),
    )
    return {
        "run": run.storage.uri,
        "experiment": dataclasses.replace(run.experiment, evaluate=told).to_dict(),
        "shards": shards.uri,
        "threads": run.experiment.cluster.cpus_per_worker,
        "until_nimg": until_nimg,
        "token": token,
        "attempt": attempt,
    }


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Plays `job["run"]` as one rank: Ray has made the process group."""
    return played(job, device=get_device())


def played(job: dict[str, Any], *, device: torch.device | str) -> dict[str, Any]:
    """Plays `job["run"]` on this process's device: its Outcome as a dict, or why it diverged.

    Where no progress is made for the experiment's hang_sec, the process ends.
    """
    file = f"{stacks_prefix(job['token'], job['attempt'])}{World.current().rank}.txt"
    hang_sec = job["experiment"]["cluster"]["hang_sec"]
    alive = Alive(stacks_folder(job["run"]) / file, hang_sec=hang_sec)
    try:
        return _played(job, device=device, alive=alive)
    finally:
        alive.close()


def _played(
    job: dict[str, Any], *, device: torch.device | str, alive: Callable[[], None]
) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    run = Run.at(open_storage(job["run"]))
    run.experiment = experiment_from_dict(job["experiment"])
    shards = open_shards(job["shards"])
    if changes := changes_of_data(run, shards):  # on this node, or since the command began
        raise ConfigError(changes)
    how = {"device": device, "until_nimg": job["until_nimg"], "token": job["token"]}
    try:
        return dataclasses.asdict(play(run, shards, **how, alive=alive))
    except DivergedError as error:
        # The same on every rank and every retry: no fault of the cluster.
        return {"diverged": str(error)}


def stacks_prefix(token: int, attempt: int) -> str:
    """How the names of an attempt's files of stacks begin; the rank ends them."""
    return f"{token}-{attempt}-"


def stacks_folder(run_uri: str) -> Path:
    """A folder for the stacks of hanging workers: in the run's own, or, beside an object store, a
    temporary one.
    """
    if "://" not in run_uri:
        return Path(run_uri) / HANGS
    name = hashlib.sha256(run_uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"forger-hangs-{name}"
