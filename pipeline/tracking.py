"""A run in MLflow: params, metrics, pictures, lineage; shipped from the run's journal, never by a
worker.

The driver ships; the workers only journal. So a slow or dead tracking server cannot hold training
up, and a run that was resumed continues its MLflow run without gaps or doubles: a line is sent
once, with its time fixed when it was journalled, and MLflow takes the same point twice as one.
"""

from __future__ import annotations

import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan.config import ConfigError
from pipeline.backend import Backend
from pipeline.experiment_file import experiment_toml
from pipeline.journal import JournalLine
from pipeline.rollbacks import Rollback
from pipeline.run import Run, now_ms
from pipeline.slider import Picture, Slider

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger(__name__)

SHIPPED = "shipped.json"
MAX_PARAM = 500


def track_evaluation(
    where: Backend, experiment: str, *, name: str, tags: dict[str, str], metrics: dict[str, float],
    nimg: int, folder: Path,
) -> str:  # fmt: skip
    """Records an evaluation as a finished run of its own, with every file in `folder`.

    Returns where to look at it.
    """
    from mlflow.entities import Metric

    client = where.client()
    experiment_id = experiment_called(client, experiment, artifacts=where.artifacts)
    kind = {"forger.kind": "evaluate"}
    run_id = client.create_run(experiment_id, tags=kind | tags, run_name=name).info.run_id
    now = now_ms()
    points = [Metric(k, v, now, nimg) for k, v in metrics.items() if math.isfinite(v)]
    client.log_batch(run_id, metrics=points)
    client.log_artifacts(run_id, str(folder))
    client.set_terminated(run_id, status="FINISHED")
    return run_url(where, experiment_id, run_id)


def experiment_called(
    client: MlflowClient, name: str, *, artifacts: str | None,
    remedy: str = "restore it, or set tracking.experiment",
) -> str:  # fmt: skip
    """The id of MLflow's experiment of this name, made where it is missing.

    Raises ConfigError, with the remedy, where it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:  # somebody else was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            [f"MLflow's experiment {name!r} (id {found.experiment_id}) was deleted; {remedy}"]
        )
    return found.experiment_id


def try_out(where: Backend, experiment: str) -> None:
    """Writes a run with a metric and a file into MLflow's experiment of this name, and deletes it.

    Raises what MLflow does where one of them is refused.
    """
    client = where.client()
    experiment_id = experiment_called(client, experiment, artifacts=where.artifacts)
    run_id = client.create_run(experiment_id, tags={"forger.kind": "check"}).info.run_id
    try:
        client.log_metric(run_id, "check", 1.0)
        client.log_text(run_id, "written by forger check", "check.txt")
        client.set_terminated(run_id, status="FINISHED")
    finally:
        client.delete_run(run_id)


def run_url(where: Backend, experiment_id: str, run_id: str) -> str:
    """What to open in a browser, or the command that serves it."""
    if where.uri.startswith("http"):
        return (
            f"{where.uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
            "?workflowType=machine_learning"
        )
    return f"mlflow ui --backend-store-uri {where.shown}"


def open_tracker(where: Backend, run: Run, *, parent: str | None = None) -> Tracker:
    """The run's end of MLflow, shown below the MLflow run `parent` where one is given.

    Raises ConfigError where MLflow refuses us, with its own words.
    """
    try:
        return Tracker(where, run, parent=parent)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            [f"MLflow at {where.shown} cannot be used: {type(error).__name__}: {error}"]
        ) from error


class Tracker:
    """One run's end of MLflow. One process a run has it: the driver."""

    def __init__(self, where: Backend, run: Run, *, parent: str | None = None):
        self.where, self.run, self.parent = where, run, parent
        self.client = where.client()
        name = run.experiment.tracking.experiment or run.experiment.name
        self.experiment_id = experiment_called(self.client, name, artifacts=where.artifacts)
        self.run_id = self._only_run()
        self._describe()
        self.client.update_run(self.run_id, status="RUNNING")
        self.shipped = self._read_shipped()  # nimg of the last journal line that MLflow has

    def _only_run(self) -> str:
        """MLflow's run of this one, created where there is none.

        A server may carry out a create whose answer was lost, and late: then there are two, of
        which the first counts, and the other goes.
        """
        from pipeline.asking import create_once

        run_id = create_once(self._first_run, self._create_run).info.run_id
        self._drop_doubles(run_id)
        return run_id

    def _drop_doubles(self, run_id: str) -> None:
        for other in self._runs():
            if other.info.run_id != run_id:
                self.client.delete_run(other.info.run_id)

    def _runs(self) -> list[MlflowRun]:
        """All runs of this one, the first by time first."""
        return self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`forger.run_id` = '{self.run.id}'",
            order_by=["attributes.start_time ASC"],
        )

    def _first_run(self) -> MlflowRun | None:
        return next(iter(self._runs()), None)

    def _create_run(self) -> None:
        lineage = self.run.lineage
        tags = {
            "forger.run_id": self.run.id,
            "forger.kind": "train",
            "forger.data_digest": self.run.data_digest,
            "forger.experiment_digest": self.run.experiment.digest,
            "forger.folder": self.run.storage.uri,
            **({"mlflow.parentRunId": self.parent} if self.parent else {}),
            **trial_tags(lineage),
            **({"mlflow.source.git.commit": lineage["commit"]} if lineage.get("commit") else {}),
            **{f"forger.package.{name}": v for name, v in lineage["packages"].items()},
        }
        self.client.create_run(self.experiment_id, tags=tags, run_name=self.run.name)

    def _describe(self) -> None:
        """Files and params, where an interruption had left them out; params say that all are
        there.
        """
        from mlflow.entities import Param

        if self.client.get_run(self.run_id).data.params:
            return
        self.client.log_text(self.run_id, experiment_toml(self.run.experiment), "experiment.toml")
        self.client.log_dict(self.run_id, self.run.lineage, "lineage.json")
        params = [Param(k, str(v)[:MAX_PARAM]) for k, v in self.run.experiment.flat().items()]
        self.client.log_batch(self.run_id, params=params)

    def _read_shipped(self) -> int:
        found = shipped(self.run)
        return found[1] if found is not None and found[0] == self.run_id else -1

    def ship(self, lines: list[JournalLine]) -> None:
        """Sends journal lines that were not sent yet, metrics in one call, then their pictures."""
        from mlflow.entities import Metric

        fresh = [line for line in lines if line.nimg > self.shipped]
        if not fresh:
            return
        metrics = [
            Metric(name, value, line.time_ms, line.nimg)
            for line in fresh
            for name, value in line.metrics.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
        self._ship_pictures(fresh)
        self.shipped = fresh[-1].nimg
        record = {"nimg": self.shipped, "mlflow_run_id": self.run_id}
        self.run.storage.write(SHIPPED, json.dumps(record).encode())

    def _ship_pictures(self, lines: list[JournalLine]) -> None:
        self._slider.show(
            [
                Picture(line.nimg, line.time_ms, partial(self._read_picture, line.picture))
                for line in lines
                if line.picture is not None
            ]
        )

    def _read_picture(self, name: str) -> bytes | None:
        try:
            return self.run.storage.read(name)
        except FileNotFoundError:  # somebody tidied up; what comes after it must not wait for it
            log.warning("the picture %s is gone, and MLflow has none of it", name)
            return None

    @property
    def _slider(self) -> Slider:
        return Slider(self.client, self.run_id, run_id=self.run.id)

    def finish(self, status: str) -> None:
        """Ends MLflow's run as FINISHED, FAILED or KILLED (stopped, can be resumed).

        A server that is away at that moment is named and no more: the journal has what it missed.
        """
        try:
            self.end(status)
        except Exception as error:
            log.warning("MLflow could not be told that the run is %s: %s", status, error)

    def end(self, status: str) -> None:
        """Ends MLflow's run as `finish` does; raises where MLflow does not take it."""
        self._drop_doubles(self.run_id)  # one that was created late would seem to be running
        self.client.set_terminated(self.run_id, status=status)

    def log_best(self, scores: dict[str, float], nimg: int, *, time_ms: int) -> None:
        """Logs the best snapshot's scores as best/..., at the nimg they come from."""
        names = {f"best/{name.removeprefix('score/')}": value for name, value in scores.items()}
        self.log_at(names, nimg, time_ms=time_ms)

    def log_at(self, metrics: dict[str, float], nimg: int, *, time_ms: int) -> None:
        """Logs metrics at one nimg; at the same time they are the same points."""
        from mlflow.entities import Metric

        points = [Metric(name, value, time_ms, nimg) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=points)

    def log_rollbacks(self, given_up: list[Rollback]) -> None:
        """Tells how often, from where and why the game was taken up again further back: in a
        text, and as a card among the samples, a step past the last image that was given up.
        """
        from pipeline.pictures import card_png

        lines = [
            f"{back.number}: from {back.from_nimg} to {back.to_nimg} images, learning rates times "
            f"{back.lr_factor:g}: {back.reason}"
            for back in given_up
        ]
        self.client.log_text(self.run_id, "".join(f"{line}\n" for line in lines), "rollbacks.txt")
        began_ms = self.client.get_run(self.run_id).info.start_time  # the same at every try
        self._slider.show(
            [  # the tick itself has a picture of its own, or will have
                Picture(back.from_nimg + 1, began_ms, partial(card_png, f"rollback {line}"))
                for back, line in zip(given_up, lines, strict=True)
            ]
        )
        self.tag({"forger.rollbacks": len(given_up)})

    def tag(self, tags: dict[str, Any]) -> None:
        """Sets tags of MLflow's run."""
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, str(value))

    @property
    def url(self) -> str:
        """What to open in a browser, or the command that serves it."""
        return run_url(self.where, self.experiment_id, self.run_id)


def shipped(run: Run) -> tuple[str, int] | None:
    """The MLflow run that a run's ticks were sent to, and the nimg of the last one."""
    if not run.storage.exists(SHIPPED):
        return None
    record = json.loads(run.storage.read(SHIPPED))
    return record["mlflow_run_id"], int(record["nimg"])


def trial_tags(lineage: dict[str, Any]) -> dict[str, str]:
    """Which search a run is a trial of, and which one; nothing for other runs."""
    search = lineage.get("search")
    if search is None:
        return {}
    return {
        "forger.search": search["name"],
        "forger.search_id": search["id"],
        "forger.trial": str(search["trial"]),
    }
