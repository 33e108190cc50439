"""Stage: a verb as a job on a cluster. A job is called after its run, and a run has one alive."""

from __future__ import annotations

import hashlib
import json
import shlex
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gan.config import ConfigError, check_sample
from pipeline.data_checks import check_data
from pipeline.dataset import open_shards
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_toml
from pipeline.job_server import NONCE, Job, JobServer
from pipeline.lineage import code_and_packages
from pipeline.package import environment, packed, refuse_secrets

VERB, RUN, STORAGE, EXPERIMENT = "forger.verb", "forger.run", "forger.storage", "forger.experiment"
COMMIT = "forger.commit"
MOST_TRIES = 5  # for an id that others take at the same moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a job shall do: `forger VERB WORDS...`, with `files` (name to text) beside it.

    `run` below `storage` is what it is called after; with `alone`, no other job may be at work on
    that run.
    """

    verb: str
    words: tuple[str, ...]
    run: str
    storage: str
    alone: bool
    digest: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


def elsewhere(experiment: Experiment, *, here: bool) -> Experiment:
    """The experiment with every place as a job finds it, whose folder is one of Ray's.

    Where the cluster is not `here`, raises ConfigError for each place that only this folder has.
    """
    places = {
        "data.shards": experiment.data.shards,
        "cluster.storage": experiment.cluster.storage,
    }
    if experiment.evaluate.weights is not None:
        places["evaluate.weights"] = experiment.evaluate.weights
    if Path(experiment.evaluate.extractor).exists():
        places["evaluate.extractor"] = experiment.evaluate.extractor
    for key, value in placed(places, here=here).items():
        experiment = experiment.replace(key, value)
    return experiment


def placed(places: Mapping[str, str], *, here: bool) -> dict[str, str]:
    """Each place (by the name of its setting) as every node finds it. Raises ConfigError for those
    that are relative to this folder, where the cluster is not `here`.
    """
    found, mistakes = {}, []
    for key, place in places.items():
        if not place or "://" in place or place.startswith("models:"):
            found[key] = place
            continue
        path = Path(place).expanduser()
        found[key] = str(path.resolve())
        if not (here or path.is_absolute()):
            mistakes.append(
                f"{key} = {place!r} is a folder of this machine's; on a cluster elsewhere name "
                f"it as every node finds it: s3://bucket/prefix, or the whole path of a shared one"
            )
    if mistakes:
        raise ConfigError(mistakes)
    return found


def order_for(
    verb: str, experiment: Experiment, options: Iterable[str], *, run: str, here: bool
) -> Order:
    """The job of training or searching an experiment, checked as far as this machine can see."""
    there = elsewhere(experiment, here=here)
    if here:
        shards = open_shards(there.data.shards)
        check_sample(there.game, shards.sample)
        check_data(there.data, shards)
    file = f"{experiment.name}.toml"
    identity = json.dumps(there.identity, sort_keys=True, default=str)
    return Order(
        verb=verb,
        words=(file, *options),
        run=run,
        storage=there.cluster.storage,
        alone=True,
        digest=hashlib.sha256(identity.encode()).hexdigest()[:12],
        files={file: experiment_toml(there)},
    )


def submit(
    server: JobServer, order: Order, *, python: str = "python", variables: Iterable[str] = ()
) -> Job:
    """Starts the order as a job, and returns it.

    Raises ConfigError where a job that is not over is at work on the run, naming it, and where the
    job would show a secret; Unreachable where it is not known whether the cluster took it.
    """
    command = shlex.join(["exec", python, "-m", "jobs", order.verb, *order.words])
    metadata = {
        NONCE: uuid.uuid4().hex,
        VERB: order.verb,
        RUN: order.run,
        STORAGE: order.storage,
        EXPERIMENT: order.digest,
        COMMIT: code_and_packages()["commit"] or "",
        "job_name": order.run,
    }
    told = environment(variables)
    refuse_secrets({"the command": command, **metadata, **told, **order.files})
    with packed(order.files) as package:
        for _ in range(MOST_TRIES):
            known = server.jobs()
            if order.alone:
                refuse_second(known, order)
            job_id = next_id(known, order)
            if server.submit(job_id, command, package=package, variables=told, metadata=metadata):
                return server.find(job_id) or Job(job_id, "PENDING", metadata)
    raise ConfigError([f"others submit {order.run} at this very moment; look at `forger jobs`"])


def resume_order(job: Job) -> Order:
    """The job that goes on with the run of a training that is over, by the run's own record."""
    run, storage = job.metadata[RUN], job.metadata[STORAGE]
    if job.metadata[VERB] not in ("train", "resume"):
        raise ConfigError(
            [
                f"{job.id} is a job of `forger {job.metadata[VERB]}`; the same `forger submit` "
                f"goes on with it"
            ]
        )
    return Order(
        verb="resume",
        words=(run, "--storage", storage),
        run=run,
        storage=storage,
        alone=True,
        digest=job.metadata.get(EXPERIMENT, ""),
    )


def refuse_second(known: Iterable[Job], order: Order) -> None:
    """Raises ConfigError where one of the jobs is not over and at work on the order's run."""
    for job in known:
        same = (job.metadata.get(RUN), job.metadata.get(STORAGE)) == (order.run, order.storage)
        if same and not job.over and job.metadata.get(VERB) in ("train", "search", "resume"):
            raise ConfigError(
                [
                    f"job {job.id} is at work on {order.run} ({job.status}); `forger logs "
                    f"{job.id} -f` follows it, `forger stop {job.id}` stops it at a checkpoint"
                ]
            )


def next_id(known: Iterable[Job], order: Order) -> str:
    """NAME-wwww-N: the run, four letters of where it is, and the first number that is free.

    Two who submit the same at once come to the same id, and the cluster gives it to one of them.
    """
    where = hashlib.sha256(f"{order.storage}/{order.run}".encode()).hexdigest()[:4]
    stem = f"{order.run}-{where}-"
    taken = [job.id.removeprefix(stem) for job in known if job.id.startswith(stem)]
    return f"{stem}{max((int(n) for n in taken if n.isdigit()), default=0) + 1}"
