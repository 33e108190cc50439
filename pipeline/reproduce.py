"""Stage: a registered generator trained again from its lineage, and held against the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gan.config import ConfigError
from pipeline.dataset import open_shards
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.lineage import code_and_packages
from pipeline.run import Run
from pipeline.snapshot import Snapshot, read_snapshot
from pipeline.train import Trained, Watcher, train

REPRODUCED = "_reproduced"  # below the storage; no run can have this name


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What training again came to."""

    original: Snapshot
    copy: Snapshot | None  # None where the run was stopped before it got there
    run: Run
    differences: tuple[str, ...]  # of code, packages and machine: what may explain other bits

    @property
    def identical(self) -> bool:
        """Whether the weights are the same, bit for bit."""
        return self.copy is not None and self.copy.sha256 == self.original.sha256

    @property
    def largest_difference(self) -> float:
        """Of any weight."""
        assert self.copy is not None
        mine, theirs = self.copy.module.state_dict(), self.original.module.state_dict()
        return max(float((mine[k].double() - theirs[k].double()).abs().max()) for k in theirs)


def experiment_of(original: Snapshot, *, storage: str, data: str | None) -> Experiment:
    """The experiment that made `original`, to be run below `storage`, on its data.

    Raises ConfigError where the data is not the one that it was trained on.
    """
    lineage = original.card.lineage
    experiment = experiment_from_dict(lineage["experiment"])
    shards = open_shards(data or experiment.data.shards)
    if shards.digest != lineage["data_digest"]:
        raise ConfigError(
            [
                f"the data at {shards.uri} has digest {shards.digest[:12]}, the generator was "
                f"trained on {lineage['data_digest'][:12]}; name that data with --data"
            ]
        )
    for key, value in (
        ("data.shards", shards.uri),
        ("cluster.storage", f"{storage}/{REPRODUCED}/{lineage['run_id'][:12]}"),
        ("tracking.experiment", f"{experiment.name}-reproduced"),
    ):
        experiment = experiment.replace(key, value)
    return experiment


def reproduce(original: Snapshot, experiment: Experiment, watcher: Watcher) -> Reproduced:
    """Trains `experiment` to its end without registering anything, and finds the same snapshot.

    The same command again resumes; a run that is complete is not trained again.
    """
    trained: Trained = train(experiment, watcher, register_best=False)
    run = trained.run
    copy = None
    if trained.finished:
        at_same_nimg = [s for s in run.snapshots() if s.card.nimg == original.card.nimg]
        found = at_same_nimg[0] if at_same_nimg else run.best()
        assert found is not None, "a finished run has been judged at its end"
        copy = read_snapshot(run.storage, found.folder)
    return Reproduced(original, copy, run, tuple(_differences(original.card.lineage)))


def _differences(lineage: dict[str, Any]) -> list[str]:
    now = code_and_packages()
    names = [("code commit", "commit"), ("Python", "python"), ("machine", "machine")]
    pairs = [(shown, lineage.get(key), now.get(key)) for shown, key in names]
    then_packages, now_packages = lineage.get("packages", {}), now["packages"]
    pairs += [
        (name, then_packages.get(name), now_packages.get(name))
        for name in sorted(then_packages.keys() | now_packages.keys())
    ]
    return [f"{name} was {then}, is {here}" for name, then, here in pairs if then != here]
