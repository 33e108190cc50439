"""A search's folder: what is searched, and a record of every trial; the truth after any crash.

runs/<search>/search.json             the experiment with its [search], the data's digest
runs/<search>/trials/<number>.json    one trial: its point, its state and why, its readings
runs/<search>/runs/<search>-<number>/ the trial's run, as pipeline.run has it
runs/<search>/best.toml               the winner, as an experiment that `forger train` runs
runs/<search>/result.json             written once the search is complete
"""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gan.config import ConfigError
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.identity import leaves
from pipeline.journal import JournalLine
from pipeline.run import RECORD as RUN_RECORD
from pipeline.run import SEARCH_RECORD as RECORD
from pipeline.run import Run
from pipeline.search_config import SearchConfig
from pipeline.storage import Storage, open_storage

State = Literal["waiting", "running", "complete", "stopped", "diverged", "failed"]
ENDED = ("complete", "stopped", "diverged", "failed")
RESULT = "result.json"
BEST = "best.toml"
TRIALS = "trials"
RUNS = "runs"
MAY_CHANGE = ("search.parallel", "search.finalists", "search.final_images", "search.final_seeds")


@dataclass(frozen=True, slots=True)
class Reading:
    """One evaluation of a trial: what is minimized, by objective, with the standard errors.

    `fd` is bias-corrected; `diversity` is |log| of the spread over the reals', 0 at best.
    """

    nimg: int
    values: dict[str, float]
    errors: dict[str, float]


@dataclass(slots=True, kw_only=True)
class Trial:
    """One trial. With PBT one member's life in one generation; it continues `parent`'s weights."""

    number: int
    run: str  # the run's name
    point: dict[str, Any]  # what was drawn
    settings: dict[str, Any]  # what it decides, by dotted name
    origin: str  # "the file's own", "given", "random", "tpe", "kept", "cloned and changed", ...
    generation: int = 0
    member: int | None = None  # pbt
    parent: int | None = None  # the trial whose weights it began with
    from_nimg: int = 0
    until_nimg: int
    state: State = "waiting"
    reason: str = ""  # why it was stopped, diverged or failed
    readings: list[Reading] = field(default_factory=list)
    judged_nimg: int = 0  # up to where the stopping rule has seen its readings
    nimg: int = 0  # how far it came
    device_sec: float = 0.0  # spent playing, all workers together
    mlflow_url: str = ""

    @property
    def spent_nimg(self) -> int:
        """Images that D saw in this trial itself."""
        return max(0, self.nimg - self.from_nimg)

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.state in ENDED

    def best(self, objective: str) -> Reading | None:
        """The evaluation with the smallest value of an objective; the earlier one of equals."""
        found = [reading for reading in self.readings if objective in reading.values]
        return min(found, key=lambda reading: reading.values[objective], default=None)

    def reached(self, objectives: Sequence[str]) -> tuple[float, ...] | None:
        """Every objective at the reading that is best by the first, whose generator is kept.

        None where it diverged, failed or was never judged.
        """
        best = self.best(objectives[0])
        if self.state in ("diverged", "failed") or best is None:
            return None
        found = [best.values[name] for name in objectives if name in best.values]
        return tuple(found) if len(found) == len(objectives) else None


def reading_of(line: JournalLine) -> Reading | None:
    """What a judged tick says of a trial; None for a tick that was not judged."""
    scores = {}
    for name, value in line.metrics.items():
        prefix, _, rest = name.partition("/")
        if prefix == "score" and math.isfinite(value):
            scores[rest.replace("fid", "fd", 1)] = value

    def found(measure: str) -> float | None:
        return next((v for k, v in scores.items() if k.startswith(f"{measure}_")), None)

    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    plug_in = {k: v for k, v in scores.items() if not k.startswith(("fd_corrected", "fd_error"))}
    plain = next((v for k, v in plug_in.items() if k.startswith("fd_")), None)
    corrected = found("fd_corrected")
    if corrected is not None or plain is not None:
        values["fd"] = corrected if corrected is not None else float(plain or 0.0)
        errors["fd"] = found("fd_error") or 0.0
    kid = next((v for k, v in scores.items() if k.startswith("kid_") and "error" not in k), None)
    if kid is not None:
        values["kid"], errors["kid"] = kid, found("kid_error") or 0.0
    spread = next(
        (v for k, v in scores.items() if k.startswith("diversity_") and "error" not in k), None
    )
    if spread is not None and spread > 0:
        values["diversity"] = abs(math.log(spread))
        errors["diversity"] = (found("diversity_error") or 0.0) / spread
    return Reading(line.nimg, values, errors) if values else None


@dataclass(slots=True)
class Ledger:
    """One search, by its folder. One process writes it: the driver; anybody may read."""

    storage: Storage
    name: str
    id: str
    experiment: Experiment  # with its [search]
    data_digest: str

    @classmethod
    def at(cls, storage: Storage) -> Ledger:
        """The search in this folder. Raises ConfigError where there is none."""
        try:
            record = json.loads(storage.read(RECORD))
        except FileNotFoundError:
            raise ConfigError([f"there is no search in {storage.uri} (no {RECORD})"]) from None
        return cls(
            storage=storage,
            name=record["name"],
            id=record["id"],
            experiment=experiment_from_dict(record["experiment"]),
            data_digest=record["data_digest"],
        )

    @classmethod
    def open(cls, name: str, experiment: Experiment, shards: ShardSet) -> Ledger:
        """The search of this name, new or to be continued.

        Raises ConfigError where it was begun with other settings or on other data, naming each.
        """
        storage = open_storage(f"{experiment.cluster.storage}/{name}")
        if storage.exists(RECORD):
            ledger = cls.at(storage)
            _refuse_changes(ledger, experiment, shards)
            ledger.experiment = experiment
        elif storage.exists(RUN_RECORD):
            raise ConfigError(
                [f"{storage.uri} is a run's folder; give the search another name: search.name=..."]
            )
        else:
            ledger = cls(storage, name, uuid.uuid4().hex, experiment, shards.digest)
        ledger._publish()
        return ledger

    def _publish(self) -> None:
        record = {
            "schema": 1,
            "name": self.name,
            "id": self.id,
            "experiment": self.experiment.to_dict(),
            "data_digest": self.data_digest,
        }
        self.storage.write(RECORD, json.dumps(record, indent=1).encode())

    @property
    def config(self) -> SearchConfig:
        """The `[search]` section."""
        assert self.experiment.search is not None
        return self.experiment.search

    @property
    def runs(self) -> Storage:
        """Where the trials' runs are."""
        return self.storage.below(RUNS)

    def trials(self) -> list[Trial]:
        """Every trial so far, by number."""
        names = self.storage.names(TRIALS)
        return [_trial(json.loads(self.storage.read(name))) for name in names]

    def trial(self, number: int) -> Trial:
        """One trial's record."""
        return _trial(json.loads(self.storage.read(_file(number))))

    def write(self, trial: Trial) -> None:
        """Publishes a trial's record."""
        record = dataclasses.asdict(trial)
        self.storage.write(_file(trial.number), json.dumps(record, indent=1).encode())

    def run_name(self, number: int) -> str:
        """What the run of this trial is called."""
        return f"{self.name}-{number:03d}"

    def has_run(self, trial: Trial) -> bool:
        """Whether the trial's run was begun."""
        return self.runs.exists(f"{trial.run}/{RUN_RECORD}")

    def run_of(self, trial: Trial) -> Run:
        """The trial's run. Raises ConfigError where it was not begun."""
        return Run.at(self.runs.below(trial.run))

    @property
    def spent_all(self) -> bool:
        """Whether the trials have seen all the images that the search may spend."""
        budget = self.config.budget_kimg
        spent = sum(trial.spent_nimg for trial in self.trials())
        return budget is not None and spent >= budget * 1000

    def catch_up(self, trial: Trial, *, whole: bool = False) -> list[JournalLine]:
        """Takes what the trial's journal has and the record has not; returns those ticks.

        What a rollback may yet take back is left for later, but for the `whole` of a trial that
        does not go on.
        """
        run = self.run_of(trial)
        held_back = run.experiment.watchdog.action == "rollback" and not whole
        until = run.released_nimg if held_back else math.inf
        lines = run.journal(after=max(trial.nimg, trial.from_nimg))
        fresh = [line for line in lines if line.nimg <= until]
        for line in fresh:
            trial.nimg = line.nimg
            trial.device_sec += line.seconds * self.experiment.cluster.max_workers
            reading = reading_of(line)
            if reading is not None:
                trial.readings.append(reading)
        return fresh

    @property
    def result(self) -> dict[str, Any] | None:
        """What the search ended with, once it is complete."""
        return json.loads(self.storage.read(RESULT)) if self.storage.exists(RESULT) else None

    def reopen(self) -> None:
        """Takes the result back: more trials are to come."""
        self.storage.delete(RESULT)

    def complete(self, result: Mapping[str, Any]) -> None:
        """Marks the search as complete."""
        self.storage.write(RESULT, json.dumps(result, indent=1).encode())


def best_of(trials: Iterable[Trial], objective: str) -> list[Trial]:
    """Trials that were ever judged and did not fail, best first; the earlier one of equals."""
    judged = [(reading, t) for t in trials if (reading := t.best(objective)) is not None]
    kept = [(reading.values[objective], t.number, t) for reading, t in judged
            if t.state not in ("diverged", "failed")]  # fmt: skip
    return [trial for _, _, trial in sorted(kept, key=lambda each: each[:2])]


def front_of(trials: Iterable[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The Pareto front: trials that no other one beats in one objective without losing in another.

    By number. With one objective it is the best trial and its equals.
    """
    reached = [(trial, values) for trial in trials if (values := trial.reached(objectives))]
    return [
        trial
        for trial, mine in reached
        if not any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine
            for _, other in reached
        )
    ]


def _file(number: int) -> str:
    return f"{TRIALS}/{number:04d}.json"


def _trial(record: dict[str, Any]) -> Trial:
    readings = [Reading(**reading) for reading in record.pop("readings")]
    return Trial(**record, readings=readings)


def _refuse_changes(ledger: Ledger, experiment: Experiment, shards: ShardSet) -> None:
    old, new = _identity(ledger.experiment), _identity(experiment)
    mistakes = [
        f"{key} was {old.get(key)!r} when the search began and is {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if ledger.data_digest != shards.digest:
        mistakes.append(
            f"the data at {shards.uri} has digest {shards.digest[:12]}, "
            f"the search was begun on {ledger.data_digest[:12]}"
        )
    if mistakes:
        mistakes.append(
            f"to search anew beside the old one, give it another name: "
            f"search.name={ledger.name}-changed; the old one is in {ledger.storage.uri}"
        )
        raise ConfigError(mistakes)


def _identity(experiment: Experiment) -> dict[str, Any]:
    """The settings that the trials and their comparison depend on."""
    assert experiment.search is not None
    kept = {"search": dataclasses.asdict(experiment.search),
            "evaluate": dataclasses.asdict(experiment.evaluate)}  # fmt: skip
    plain = json.loads(json.dumps(kept))  # tuples become lists, as they come back from a file
    found = json.loads(json.dumps(experiment.identity)) | dict(leaves(plain))
    if experiment.search.scheduler != "pbt":
        found.pop("search.trials")  # more can be added
    return {key: value for key, value in found.items() if key not in MAY_CHANGE}
