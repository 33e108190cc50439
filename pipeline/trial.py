"""One trial in a process of Ray Tune: the same core as `forger train`, on one device here or on
workers of its own.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from contextlib import ExitStack
from typing import Any

from pipeline.cluster import gpu_of_this_process, trainer  # before any other ray

import torch  # isort: skip
from ray import tune

from gan.config import ConfigError
from pipeline.dataset import open_shards
from pipeline.failures import LESS_MEMORY, first_failure
from pipeline.lease import Lease, take
from pipeline.ledger import Ledger, Trial
from pipeline.run import Run
from pipeline.storage import open_storage
from pipeline.worker import job_of, played, work

POLL_SEC = 0.5
LEASE_SEC = 60  # how long a process that was replaced may take to die


def play_trial(config: dict[str, Any], search: str) -> None:
    """Tune's trainable: plays trial `config["number"]` of the search in the folder `search` from
    its newest checkpoint to its end, or to the next tick after a stop request.

    Tells Tune of each evaluation by its nimg; the scores are in the run's journal. A setting that
    cannot work ends the trial with a reason; any other error is raised, and Tune tries again.
    """
    ledger = Ledger.at(open_storage(search))
    trial = ledger.trial(config["number"])
    run = ledger.run_of(trial)
    with ExitStack() as held:
        ending = _followed(ledger, trial, run, token=_hold(run, held).token)
    tune.report({"number": trial.number, "nimg": ending.pop("nimg", 0), **ending})


def _followed(ledger: Ledger, trial: Trial, run: Run, *, token: int) -> dict[str, Any]:
    """Plays in a thread, so that this one can tell Tune of evaluations without holding it up."""
    ended: dict[str, Any] = {}
    over = threading.Event()

    def run_it() -> None:
        try:
            ended["value"] = _play(trial, run, token=token)
        except BaseException as error:
            ended["error"] = error
        over.set()

    seen = max((line.nimg for line in run.journal()), default=-1)
    threading.Thread(target=run_it, name=f"trial-{trial.number}", daemon=True).start()
    while True:
        last = over.wait(POLL_SEC)
        for line in run.journal(after=seen):
            seen = line.nimg
            if any(name.startswith("score/") for name in line.metrics):
                tune.report({"number": trial.number, "nimg": line.nimg, "ending": ""})
        if last:
            break
    if "error" in ended:
        return _failed(ended.pop("error"))
    return _ending(trial, ended["value"])


def _play(trial: Trial, run: Run, *, token: int) -> dict[str, Any]:
    cluster = run.experiment.cluster
    shards = open_shards(run.experiment.data.shards)
    job = job_of(run, shards, token=token, until_nimg=trial.until_nimg)
    if cluster.max_workers == 1:
        return played(job, device=gpu_of_this_process())
    with tempfile.TemporaryDirectory(prefix="forger-ray-") as folder:  # nobody reads it again
        nested = trainer(
            work,
            job,
            cluster=cluster,
            name=run.name,
            folder=folder,
            max_failures=cluster.max_failures,
        ).fit()
    assert isinstance(nested.return_value, dict)
    return nested.return_value


def _ending(trial: Trial, value: dict[str, Any]) -> dict[str, Any]:
    if "diverged" in value:
        return {"ending": "diverged", "reason": value["diverged"]}
    state = "complete" if value["nimg"] >= trial.until_nimg else "stopped"
    return {"ending": state, "reason": "", "nimg": value["nimg"]}


def _failed(error: BaseException) -> dict[str, Any]:
    """What trying again would not mend. Raises everything else, for Tune to try again."""
    if isinstance(error, ConfigError):
        return {"ending": "failed", "reason": "; ".join(error.mistakes)}
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        remedy = LESS_MEMORY
        error.__traceback__ = None  # its frames hold what filled the memory; the process plays on
        gc.collect()
        torch.cuda.empty_cache()
        return {"ending": "failed", "reason": f"out of memory ({error}); {remedy}"}
    if hasattr(error, "worker_failures"):  # Ray Train had its own retries
        return {"ending": "failed", "reason": str(first_failure(error))}
    raise error


def _hold(run: Run, held: ExitStack) -> Lease:
    """Takes the run's lease; a process that was replaced may have it until it dies."""
    deadline = time.monotonic() + LEASE_SEC

    def journalled() -> dict[str, Any]:
        return {"journalled": run.journalled_nimg}

    while True:
        try:
            return held.enter_context(take(run.storage, who=f"trial {run.name}", note=journalled))
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SEC)
