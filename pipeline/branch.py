"""A run that begins where another one stood: its checkpoint, journal and snapshots up to there."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from gan.config import ConfigError
from pipeline.card import CARD, TENSORS
from pipeline.checkpoint import (
    DAMAGE,
    all_nimg,
    checkpoint_at,
    copy_checkpoint,
    latest_checkpoint,
)
from pipeline.checkpoint import FOLDER as CHECKPOINTS
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.journal import JOURNAL, JournalWriter
from pipeline.lineage import code_and_packages
from pipeline.run import (
    GRID,
    RECORD,
    SNAPSHOTS,
    Run,
    changes_of_data,
    refuse_changes,
)
from pipeline.storage import Storage, open_storage

# What the tensors of a checkpoint, and its clock, have in them.
KEPT = (
    "turns.batch_size",
    "turns.precision",
    "conditioning.name",
    "generator.latent_dim",
    "generator.discrete_codes",
    "generator.continuous_codes",
    *(
        f"{player}.{setting}"
        for player in ("generator", "discriminator")
        for setting in ("network", "width", "depth", "norm", "optimizer")
    ),
)


def branch(
    parent: Run,
    name: str,
    experiment: Experiment,
    shards: ShardSet,
    *,
    nimg: int,
    lineage: Mapping[str, Any] | None = None,
) -> Run:
    """The run `name` that begins where `parent` stood at `nimg` images; `play` goes on from there.

    It has the parent's history up to there as its own: checkpoint, journal, snapshots that are
    still kept (their cards name the run that made them), and on what it was played; `lineage` is
    added. The experiment may have other settings than the parent's, but for the KEPT ones. A
    branch that is there already is opened as `Run.open` does; one that was cut short is made
    again, as run.json comes last. Raises ConfigError where the parent has no whole checkpoint at
    `nimg`, and for another batch size, other networks or other data than the parent's.
    """
    origin = {"run_id": parent.id, "run_name": parent.name, "nimg": nimg}
    storage = open_storage(f"{experiment.cluster.storage}/{name}")
    if storage.exists(RECORD):
        run = Run.at(storage)
        found = run.lineage.get("branched")
        if found != origin:
            whence = f"from {found['run_name']} at {found['nimg']} images" if found else "afresh"
            raise ConfigError(
                [
                    f"{storage.uri} must be free for a branch of {parent.name} at {nimg} images, "
                    f"got a run that began {whence}; choose another name"
                ]
            )
        refuse_changes(run, experiment, shards)
        run.experiment = experiment
        return run
    _refuse_misfits(parent, experiment, shards, nimg=nimg)
    for part in (CHECKPOINTS, JOURNAL, SNAPSHOTS):
        for left_over in storage.names(part):
            storage.delete(left_over)
    run = Run(
        storage=storage,
        name=name,
        id=uuid.uuid4().hex,
        experiment=experiment,
        data_digest=parent.data_digest,
        lineage=_lineage(parent, nimg) | {"branched": origin} | dict(lineage or {}),
    )
    copy_checkpoint(parent.storage, storage, nimg)
    JournalWriter(storage, last=-1).add(*(line for line in parent.journal() if line.nimg <= nimg))
    _copy_snapshots(parent.storage, storage, nimg)
    run.publish()
    return run


def fork_of(name: str, fork: str, experiment: Experiment, shards: ShardSet) -> Run:
    """The branch called `fork` of the run `name`, from its newest checkpoint, with an experiment
    that may differ; where it is there already, as it was begun.

    Raises ConfigError as `branch` does, and where there is nothing to go on from.
    """
    runs = open_storage(experiment.cluster.storage)
    parent = Run.at(runs.below(name))
    if fork == name:
        raise ConfigError([f"--fork needs another name than the run's own, got {fork!r}"])
    if runs.exists(f"{fork}/{RECORD}"):
        found = Run.at(runs.below(fork)).lineage.get("branched") or {}
        if found.get("run_id") == parent.id:
            return branch(parent, fork, experiment, shards, nimg=found["nimg"])
    newest = latest_checkpoint(parent.storage, abandoned=parent.abandoned())
    if newest is None:
        raise ConfigError([f"{name} has no checkpoint yet that a fork could go on from"])
    return branch(parent, fork, experiment, shards, nimg=newest.nimg)


def _refuse_misfits(parent: Run, experiment: Experiment, shards: ShardSet, *, nimg: int) -> None:
    old, new = parent.experiment.flat(), experiment.flat()
    mistakes = [
        f"{key} must stay {old[key]!r} in a branch of {parent.name}, got {new[key]!r}"
        for key in KEPT
        if old[key] != new[key]
    ]
    mistakes += changes_of_data(parent, shards)
    try:
        checkpoint_at(parent.storage, nimg)
    except DAMAGE:
        there = ", ".join(map(str, all_nimg(parent.storage))) or "none"
        mistakes.append(
            f"{parent.name} must have a whole checkpoint at {nimg} images to branch there, "
            f"got checkpoints at: {there}"
        )
    if mistakes:
        raise ConfigError(mistakes)


def _lineage(parent: Run, nimg: int) -> dict[str, Any]:
    played = [part for part in parent.lineage.get("played", []) if part["from_nimg"] < nimg]
    return code_and_packages() | {"played": played}


def _copy_snapshots(source: Storage, target: Storage, nimg: int) -> None:
    """Each card after its weights, so that no snapshot is there in half."""
    names = [name for name in source.names(SNAPSHOTS) if int(name.split("/")[1]) <= nimg]
    for file in (GRID, TENSORS, CARD):
        for name in names:
            if name.endswith(f"/{file}"):
                target.write(name, source.read(name))
