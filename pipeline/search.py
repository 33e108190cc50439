"""Stage: Ray Tune over `[search.space]`, followed from the driver, ending in a registered
generator.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gan.config import ConfigError, Schedule
from pipeline.backend import Backend, backend
from pipeline.cluster import check_address, connected, each_on_ray, slots
from pipeline.course import Course, experiment_of
from pipeline.dataset import ShardSet, open_shards
from pipeline.experiment import ClusterConfig, Experiment
from pipeline.experiment_file import experiment_toml
from pipeline.finals import Each, Finalist, best_generator, finalists_of, hold_finals
from pipeline.first_points import Earlier
from pipeline.interrupts import Interrupts
from pipeline.lease import Lease, take
from pipeline.ledger import BEST, Ledger, Trial, best_of, front_of
from pipeline.plans import Generations, TrialByTrial
from pipeline.registry import Registered, register
from pipeline.run import Best, free_name
from pipeline.search_config import NAME as SEARCH_NAME
from pipeline.search_fits import checked_space
from pipeline.search_report import PAGE, page_of_ledger
from pipeline.search_tracking import SearchTracker, open_search_tracker
from pipeline.shards import verify_shards
from pipeline.space import Space
from pipeline.storage import open_storage
from pipeline.tuning import run_trials
from pipeline.warm_start import earlier_trials

POLL_SEC = 1.0
MAX_REASON = 300


class SearchError(Exception):
    """The search cannot go on; the message says what stopped it."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """What the stage tells while it works."""

    begun: Callable[[Ledger, str], None]  # and MLflow's address
    changed: Callable[[Trial], None]
    said: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search came to."""

    ledger: Ledger
    trials: list[Trial]
    finished: bool
    finalists: list[Finalist]  # best first
    registered: Registered | None
    mlflow_url: str


def search(experiment: Experiment, watcher: Watcher, *, again: bool = False) -> Searched:
    """Searches the experiment's `[search.space]` to the end and registers the best generator.

    The same call goes on with a search that was interrupted, and returns one that is complete as
    it is; with `again`, another is begun beside it. On KeyboardInterrupt the running trials
    checkpoint at their next tick and the search is returned unfinished. Raises ConfigError for the
    user's mistakes, before anything is started, and SearchError where no trial works.
    """
    shards = open_shards(experiment.data.shards)
    space = checked_space(experiment, shards)
    earlier = earlier_trials(experiment, shards)
    verify_shards(shards)
    where = backend(experiment.cluster.storage)
    check_address()
    name = experiment.search_name
    if not SEARCH_NAME.fullmatch(name):
        raise ConfigError(
            [f"search.name must be given where name is longer than 41, got {name!r}"]
        )
    if again:
        name = free_name(open_storage(experiment.cluster.storage), name)
    ledger = Ledger.open(name, experiment, shards)
    if ledger.result is not None and not _more_trials(ledger):
        return _known(ledger)
    with take(ledger.storage, who=f"forger search {name}", note={}) as lease:
        ledger.reopen()
        return _search(ledger, shards, space, earlier, where, watcher, lease)


def _more_trials(ledger: Ledger) -> bool:
    """Whether the file now asks for more trials than a complete search has."""
    if ledger.config.scheduler == "pbt" or ledger.spent_all:
        return False
    return ledger.config.trials > len(ledger.trials())


def _search(
    ledger: Ledger,
    shards: ShardSet,
    space: Space,
    earlier: list[Earlier],
    where: Backend,
    watcher: Watcher,
    lease: Lease,
) -> Searched:
    """The search, which nobody else is holding, to its end or to a stop."""
    if ledger.config.scheduler == "pbt":
        plan = Generations(ledger, space, earlier=earlier)
    else:
        plan = TrialByTrial(ledger, space, earlier=earlier)
    course = Course(ledger, shards, space, plan)
    course.changed = watcher.changed
    cluster = ledger.experiment.cluster
    watcher.said("starting Ray and MLflow")
    with connected(cluster):
        slots(cluster)  # says what is missing for one trial
        tracker = open_search_tracker(where, ledger)
        watcher.begun(ledger, tracker.url)
        try:
            return _to_the_end(course, tracker, watcher, lease)
        except KeyboardInterrupt:
            tracker.give_up("KILLED")
            raise
        except BaseException as error:
            tracker.give_up("FAILED", f"{type(error).__name__}: {error}"[:MAX_REASON])
            raise


def _to_the_end(
    course: Course, tracker: SearchTracker, watcher: Watcher, lease: Lease
) -> Searched:
    """Trials, then the final judgement; or what there is when it was asked to stop."""
    _follow(course, tracker, watcher, lease)
    for trial in course.trials:
        tracker.follow(trial)
        course.ledger.write(trial)  # with its address in MLflow
    if course.gave_up:
        raise SearchError(course.gave_up)
    if not course.complete:
        tracker.give_up("KILLED")
        return Searched(course.ledger, course.trials, False, [], None, tracker.url)
    return _complete(course, tracker, watcher)


def _follow(course: Course, tracker: SearchTracker, watcher: Watcher, lease: Lease) -> None:
    """Runs the trials in a thread, so that this one can ship what they say, and hear Ctrl-C."""
    ended: dict[str, BaseException] = {}
    over = threading.Event()

    def run() -> None:
        try:
            run_trials(course)
        except BaseException as error:
            ended["error"] = error
        over.set()

    if course.finished:  # only the end was interrupted
        return
    threading.Thread(target=run, name="ray-tune", daemon=True).start()
    with Interrupts() as interrupts:
        while not over.is_set():
            lease.check()  # else two commands would write the same ledger
            for trial in list(course.trials):
                tracker.follow(trial)
            over.wait(POLL_SEC)
            if interrupts.heard and not course.stopping:
                course.stop()
                watcher.said(
                    "stopping at the trials' next ticks, with checkpoints (again: at once)"
                )
    if "error" in ended:
        raise ended["error"]


def _complete(course: Course, tracker: SearchTracker, watcher: Watcher) -> Searched:
    """Judges the best trials again, registers the best generator and closes the search; safe to
    do again where it was cut short.
    """
    ledger = course.ledger
    config, objective = ledger.config, course.objective
    front = front_of(course.trials, config.objectives)
    ranked = best_of(course.trials if len(config.objectives) == 1 else front, objective)
    if not ranked:
        reasons = [f"trial {t.number} {t.state}: {t.reason}" for t in course.trials[:3]]
        raise SearchError("\n".join(["no trial ended with a score", *reasons]))
    watcher.said(
        f"judging the best {min(len(ranked), config.finalists)} again, {config.final_images} "
        f"images at each of {config.final_seeds} other sets of latents"
    )
    finalists = hold_finals(ledger, ranked, _each(ledger.experiment.cluster))
    winner = next(trial for trial in course.trials if trial.number == finalists[0].number)
    best = best_generator(ledger, winner)
    assert best is not None
    ledger.storage.write(BEST, experiment_toml(best_file(ledger, winner, best)).encode())
    try:
        if tracker.missed:
            raise SearchError(f"MLflow has not all of trials {tracker.missed}")
        run, mlflow_run_id = ledger.run_of(winner), tracker.mlflow_run_of(winner)
        registered = register(tracker.where, run, best, mlflow_run_id=mlflow_run_id)
        result = {
            "best": winner.number,
            "front": [trial.number for trial in front],
            "finalists": [dataclasses.asdict(finalist) for finalist in finalists],
            "registered": dataclasses.asdict(registered),
            "mlflow_url": tracker.url,
        }
        _close(ledger, tracker, finalists[0], result)
    except Exception as error:  # the search itself is safe in its folder
        raise SearchError(
            f"{ledger.name} is searched, but its end was not recorded: "
            f"{type(error).__name__}: {error}"
        ) from error
    ledger.complete(result)
    return Searched(ledger, course.trials, True, finalists, registered, tracker.url)


def _close(
    ledger: Ledger, tracker: SearchTracker, first: Finalist, result: dict[str, Any]
) -> None:
    """MLflow gets the score, the page and the files."""
    objective = ledger.config.objectives[0]
    values = {f"best/{objective}": first.mean, f"best/{objective}_error": first.error}
    journal = ledger.run_of(ledger.trial(result["best"])).journal()
    time_ms = next(line.time_ms for line in journal if line.nimg == first.nimg)
    tracker.log_result(values, first.nimg, time_ms=time_ms)
    ledger.storage.write(PAGE, page_of_ledger(ledger, result=result).encode())
    with tempfile.TemporaryDirectory() as folder:
        for name in (PAGE, BEST):
            Path(folder, name).write_bytes(ledger.storage.read(name))
        record = json.dumps([dataclasses.asdict(trial) for trial in ledger.trials()], indent=1)
        Path(folder, "trials.json").write_text(record)
        tags = {
            "forger.model_version": Registered(**result["registered"]).uri,
            "forger.best_trial": str(result["best"]),
        }
        tracker.close("FINISHED", files=Path(folder), tags=tags)


def best_file(ledger: Ledger, trial: Trial, best: Best) -> Experiment:
    """A trial's experiment as a file of its own: the same seed and settings give the same weights.

    Where the trial ended early, by a cut or with its generation, the file ends where its best
    generator was, unless a schedule spans the whole run; cadences stay those of the search.
    """
    base, played = ledger.experiment, experiment_of(ledger, trial)
    experiment = dataclasses.replace(
        played,
        name=f"{ledger.name}-best",
        data=base.data,
        evaluate=base.evaluate,
        tracking=base.tracking,
        cluster=base.cluster,
    ).replace("tracking.model", base.tracking.model or base.name)
    if trial.nimg >= played.turns.total_nimg or _spans_the_run(played):
        return experiment
    changes = {
        "turns.total_kimg": best.card.nimg / 1000,
        "evaluate.every_kimg": played.evaluate_nimg / 1000,
        "tracking.tick_kimg": played.tick_nimg / 1000,
    }
    for key, value in changes.items():
        experiment = experiment.replace(key, value)
    return experiment


def _spans_the_run(experiment: Experiment) -> bool:
    """Whether a setting's schedule depends on the length of the run."""
    game = experiment.game
    sections = [getattr(game, part.name) for part in dataclasses.fields(game)]
    return any(
        isinstance(value, Schedule) and value.over_kimg is None
        for section in sections
        for setting in dataclasses.fields(section)
        if (value := getattr(section, setting.name)) is not None
    )


def _each(cluster: ClusterConfig) -> Each:
    """Judgements on Ray, as many at once as there is room for."""
    one = dataclasses.replace(cluster, workers=1)
    return lambda function, jobs: each_on_ray(function, jobs, cluster=one, at_once=slots(one))


def _known(ledger: Ledger) -> Searched:
    """A complete search, from its folder."""
    result = ledger.result
    assert result is not None
    return Searched(
        ledger,
        ledger.trials(),
        True,
        finalists_of(result),
        Registered(**result["registered"]),
        result["mlflow_url"],
    )
