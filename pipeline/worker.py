"""One rank of a run, in a process of Ray Train; apart from the stage, whose imports it does not
need.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from ray.train.torch import get_device

from pipeline.dataset import ShardSet, open_shards
from pipeline.experiment_file import experiment_from_dict
from pipeline.extractors import absolute_name, absolute_weights
from pipeline.play import DivergedError, play
from pipeline.run import Run
from pipeline.storage import open_storage


def job_of(run: Run, shards: ShardSet, *, until_nimg: int | None = None) -> dict[str, Any]:
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
    }


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Plays `job["run"]` as one rank: Ray has made the process group."""
    return played(job, device=get_device())


def played(job: dict[str, Any], *, device: torch.device | str) -> dict[str, Any]:
    """Plays `job["run"]` on this process's device: its Outcome as a dict, or why it diverged."""
    torch.set_num_threads(job["threads"])
    run = Run.at(open_storage(job["run"]))
    run.experiment = experiment_from_dict(job["experiment"])
    shards = open_shards(job["shards"])
    try:
        return dataclasses.asdict(play(run, shards, device=device, until_nimg=job["until_nimg"]))
    except (
        DivergedError
    ) as error:  # the same on every rank and every retry: no fault of the cluster
        return {"diverged": str(error)}
