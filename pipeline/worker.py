"""One rank of a run, in a process of Ray Train; apart from the stage, whose imports it does not
need.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from ray.train.torch import get_device

from pipeline.dataset import open_shards
from pipeline.experiment_file import experiment_from_dict
from pipeline.play import DivergedError, play
from pipeline.run import Run
from pipeline.storage import open_storage


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Plays `job["run"]`: Ray has made the process group, the run's folder says the rest."""
    torch.set_num_threads(job["threads"])
    run = Run.at(open_storage(job["run"]))
    run.experiment = experiment_from_dict(job["experiment"])
    try:
        return dataclasses.asdict(play(run, open_shards(job["shards"]), device=get_device()))
    except (
        DivergedError
    ) as error:  # the same on every rank and every retry: no fault of the cluster
        return {"diverged": str(error)}
