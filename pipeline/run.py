"""A run's folder: who it is, its journal, its requests to stop, and its result.

runs/<name>/run.json                  identity: the experiment, the data's digest, the code, the
                                      MLflow run
runs/<name>/journal/<nimg>.jsonl      one line a tick; a tick is journalled once however often it
                                      is replayed
runs/<name>/checkpoints/<nimg>/       pipeline.checkpoint
runs/<name>/snapshots/<nimg>/         pipeline.snapshot, and samples.png of the same generator
runs/<name>/result.json               written once the run is complete
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from gan.config import ConfigError
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.lineage import code_and_packages
from pipeline.snapshot import CARD, SnapshotCard, read_card
from pipeline.storage import Storage, open_storage

RECORD = "run.json"
SEARCH_RECORD = "search.json"
RESULT = "result.json"
STOP = "stop-request"
JOURNAL = "journal"
SNAPSHOTS = "snapshots"
GRID = "samples.png"


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One tick as it is tracked: metrics at `nimg`, at a fixed time, and a picture where one was
    drawn.
    """

    nimg: int
    time_ms: int
    seconds: float
    metrics: dict[str, float]
    picture: str | None = None


@dataclass(frozen=True, slots=True)
class Best:
    """The best snapshot so far by the chosen metric."""

    folder: str
    card: SnapshotCard
    sha256: str

    @property
    def protocol(self) -> dict[str, Any]:
        """How it was judged."""
        return self.card.lineage["judged"]["protocol"]


@dataclass(slots=True)
class Run:
    """One run, by its folder; every process that takes part opens its own."""

    storage: Storage
    name: str
    id: str
    experiment: Experiment
    data_digest: str
    lineage: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, storage: Storage) -> Run:
        """The run in this folder. Raises ConfigError where there is none."""
        try:
            record = json.loads(storage.read(RECORD))
        except FileNotFoundError:
            raise ConfigError([f"there is no run in {storage.uri} (no {RECORD})"]) from None
        experiment = experiment_from_dict(record["experiment"])
        return cls(
            storage=storage,
            name=record["name"],
            id=record["id"],
            experiment=experiment,
            data_digest=record["data_digest"],
            lineage=record["lineage"],
        )

    @classmethod
    def open(
        cls,
        name: str,
        experiment: Experiment,
        shards: ShardSet,
        *,
        lineage: Mapping[str, Any] | None = None,
    ) -> Run:
        """The run of this name, new or to be continued; a new one has `lineage` beside its own.

        Raises ConfigError where the run was begun with another experiment or on other data, naming
        each changed setting.
        """
        storage = open_storage(f"{experiment.cluster.storage}/{name}")
        if storage.exists(RECORD):
            run = cls.at(storage)
            refuse_changes(run, experiment, shards)
            run.experiment = experiment
            return run
        if storage.exists(SEARCH_RECORD):
            raise ConfigError([f"{storage.uri} is a search's folder; give the run another name"])
        run = cls(
            storage=storage,
            name=name,
            id=uuid.uuid4().hex,
            experiment=experiment,
            data_digest=shards.digest,
            lineage=code_and_packages() | dict(lineage or {}),
        )
        run.publish()
        return run

    def publish(self) -> None:
        """Writes the record that makes the folder a run."""
        record = {
            "schema": 1,
            "name": self.name,
            "id": self.id,
            "experiment": self.experiment.to_dict(),
            "data_digest": self.data_digest,
            "lineage": self.lineage,
        }
        self.storage.write(RECORD, json.dumps(record, indent=1).encode())

    def note_stretch(self, stretch: dict[str, Any]) -> None:
        """Adds to the lineage on what the run is played from now on: from_nimg, world_size, device
        and threads. One writer: rank 0.

        Whoever reproduces the run needs it: weights are the same bits only on the same kind.
        """
        played = self.lineage.get("played", [])
        if played and played[-1] | {"from_nimg": 0} == stretch | {"from_nimg": 0}:
            return
        record = json.loads(self.storage.read(RECORD))
        self.lineage = record["lineage"] = self.lineage | {"played": [*played, stretch]}
        self.storage.write(RECORD, json.dumps(record, indent=1).encode())

    @property
    def result(self) -> dict[str, Any] | None:
        """What the run ended with, once it is complete."""
        return json.loads(self.storage.read(RESULT)) if self.storage.exists(RESULT) else None

    def complete(self, result: dict[str, Any]) -> None:
        """Marks the run as complete."""
        self.storage.write(RESULT, json.dumps(result, indent=1).encode())

    def request_stop(self) -> None:
        """Asks the workers to checkpoint and return at their next tick."""
        self.storage.write(STOP, b"")

    def withdraw_stop(self) -> None:
        """Takes the request back, so that the run can go on."""
        self.storage.delete(STOP)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for one driver. Raises ConfigError where another one here has it."""
        refusal = f"{self.name} is being trained by another command; wait for it, or stop it"
        with self.storage.locked(refusal):
            yield

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked the workers to stop."""
        return self.storage.exists(STOP)

    def journal(self, *, after: int = -1) -> Iterator[JournalLine]:
        """The ticks journalled so far past nimg `after`, in order, each once."""
        last = after
        names = self.storage.names(JOURNAL)
        # A segment is named after its first tick; those that end before `after` need no reading.
        older = [name for name in names if _first_nimg(name) <= after]
        for name in names[max(0, len(older) - 1) :]:
            for text in self.storage.read(name).decode().splitlines():
                line = JournalLine(**json.loads(text))
                if line.nimg > last:
                    last = line.nimg
                    yield line

    def snapshots(self) -> list[Best]:
        """Every snapshot that is whole, oldest first."""
        found = []
        for name in self.storage.names(SNAPSHOTS):
            if PurePosixPath(name).name == CARD:
                folder = str(PurePosixPath(name).parent)
                found.append(Best(folder, *read_card(self.storage, folder)))
        return found

    def best(self, *, after: int = -1) -> Best | None:
        """The snapshot with the smallest chosen metric, of those past nimg `after`.

        Of equals the earlier one. Only those judged as the newest was are compared: same
        extractor, counts and reference. By the value without bias where all have it: the bias is
        less for a generator that collapsed.
        """
        metric, snapshots = self.experiment.evaluate.metric, self.snapshots()
        alike = [s for s in snapshots if s.protocol == snapshots[-1].protocol]
        if all(s.card.score(f"{metric}_corrected") is not None for s in alike):
            metric = f"{metric}_corrected"
        late = [s for s in alike if s.card.nimg > after]
        scores = [(score, s) for s in late if (score := s.card.score(metric)) is not None]
        return min(scores, key=lambda pair: pair[0])[1] if scores else None


class JournalWriter:
    """Appends ticks to a run's journal. One writer a run: rank 0.

    Ticks that the journal already holds are passed over: a game replayed from a checkpoint ticks
    the same again.
    """

    def __init__(self, run: Run):
        self._run = run
        self._last = max((line.nimg for line in run.journal()), default=-1)
        self._lines: list[str] = []
        self._segment = ""

    def add(self, *lines: JournalLine) -> None:
        """Publishes more ticks, given in order."""
        fresh = [line for line in lines if line.nimg > self._last]
        if not fresh:
            return
        if not self._lines:
            self._segment = f"{JOURNAL}/{fresh[0].nimg:012d}.jsonl"
        self._lines += [json.dumps(asdict(line)) for line in fresh]
        self._run.storage.write(self._segment, ("\n".join(self._lines) + "\n").encode())
        self._last = fresh[-1].nimg

    def roll(self) -> None:
        """Begins a new segment, so that segments stay short."""
        self._lines = []


def _first_nimg(segment: str) -> int:
    return int(PurePosixPath(segment).stem)


def free_name(storage: Storage, name: str) -> str:
    """`name`, or name-2, name-3, ...: the first whose run is not complete."""
    number, candidate = 1, name
    while storage.exists(f"{candidate}/{RESULT}"):
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)


def refuse_changes(run: Run, experiment: Experiment, shards: ShardSet) -> None:
    """Raises one ConfigError naming every setting that the weights depend on and that differs from
    the run's, and other data.
    """
    old, new = run.experiment.identity, experiment.identity
    mistakes = [
        f"{key} was {old.get(key)!r} when the run began and is {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    mistakes += changes_of_data(run, shards)
    if mistakes:
        mistakes.append(
            f"to start over beside the old run, give it another name: name={run.name}-changed; "
            f"the old one is in {run.storage.uri}"
        )
        raise ConfigError(mistakes)


def changes_of_data(run: Run, shards: ShardSet) -> list[str]:
    """The mistake of giving a run other data than it was begun on, if it is made."""
    if run.data_digest == shards.digest:
        return []
    return [
        f"the data at {shards.uri} has digest {shards.digest[:12]}, "
        f"the run was begun on {run.data_digest[:12]}"
    ]
