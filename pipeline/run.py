"""A run's folder: who it is, its journal, its requests to stop, and its result.

runs/<name>/run.json                  identity: the experiment, the data's digest, the code, the
                                      MLflow run
runs/<name>/journal/                  pipeline.journal: one line a tick
runs/<name>/checkpoints/<nimg>/       pipeline.checkpoint
runs/<name>/snapshots/<nimg>/         pipeline.snapshot, and samples.png of the same generator
runs/<name>/lease/, rollbacks/        who may write; from where the game was played again
runs/<name>/notes/                    lines that the workers left for the driver
runs/<name>/result.json               written once the run is complete
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from gan.config import ConfigError
from pipeline.card import CARD, TENSORS, SnapshotCard, read_card
from pipeline.checkpoint import FOLDER as CHECKPOINTS
from pipeline.checkpoint import Standing, standings
from pipeline.dataset import ShardSet
from pipeline.events import FOLDER as EVENTS
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.journal import JOURNAL, JournalLine, Segment, lines
from pipeline.lease import Record, records
from pipeline.lineage import code_and_packages
from pipeline.rollbacks import FOLDER as ROLLBACKS
from pipeline.rollbacks import Rollback, rollbacks, void
from pipeline.storage import Storage, open_storage

SCHEMA = 1
RECORD = "run.json"
SEARCH_RECORD = "search.json"
RESULT = "result.json"
STOP = "stop-request"
SNAPSHOTS = "snapshots"
NOTES = "notes"
GRID = "samples.png"


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
    _known: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def at(cls, storage: Storage) -> Run:
        """The run in this folder. Raises ConfigError where there is none that can be read."""
        try:
            record = json.loads(storage.read(RECORD))
        except FileNotFoundError:
            raise ConfigError(
                [
                    f"there is no run in {storage.uri} (no {RECORD}); `forger runs` lists those "
                    f"there are, --storage says where"
                ]
            ) from None
        if record["schema"] != SCHEMA:
            raise ConfigError(
                [
                    f"{storage.uri}/{RECORD} must have schema {SCHEMA} to be read, got "
                    f"{record['schema']}: go on with the version of Forger that wrote it"
                ]
            )
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
        if not storage.create(RECORD, run._record()):  # another command was faster
            return cls.open(name, experiment, shards, lineage=lineage)
        return run

    def publish(self) -> None:
        """Writes the record that makes the folder a run. For who alone writes here."""
        self.storage.write(RECORD, self._record())

    def _record(self) -> bytes:
        record = {
            "schema": SCHEMA,
            "name": self.name,
            "id": self.id,
            "experiment": self.experiment.to_dict(),
            "data_digest": self.data_digest,
            "lineage": self.lineage,
        }
        return json.dumps(record, indent=1).encode()

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

    def sweep_after_workers(self) -> None:
        """Removes what workers that were killed left unfinished. For the driver, while none is at
        work.
        """
        for part in (JOURNAL, CHECKPOINTS, SNAPSHOTS, NOTES, EVENTS, ROLLBACKS):
            self.storage.below(part).sweep()

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked the workers to stop."""
        return self.storage.exists(STOP)

    def journal(self, *, after: int = -1) -> Iterator[JournalLine]:
        """The ticks journalled so far past nimg `after`, in order, each once: neither those of a
        writer that was fenced off nor those of a game that was given up.
        """
        writers, given_up = self._writers(), rollbacks(self.storage)
        fenced_off = _past_fences(writers)
        newest = max((writer.token for writer in writers), default=0)

        def counts(nimg: int, token: int, rolled_back: int) -> bool:
            return not (fenced_off(nimg, token) or void(nimg, rolled_back, given_up))

        def read(segment: Segment) -> bytes:
            # What still comes of a writer that was fenced off does not count.
            old = segment.token < newest
            return self._read_once(segment.name) if old else self.storage.read(segment.name)

        return lines(self.storage, after=after, counts=counts, read=read)

    def abandoned(self) -> Callable[[Standing], bool]:
        """Says of a checkpoint, as things are now, whether it counts no longer: of a game that was
        given up, or of a writer that was fenced off, after ticks that are not in the journal.
        """
        fenced_off, given_up = _past_fences(self._writers()), rollbacks(self.storage)
        return lambda standing: (
            fenced_off(standing.ticked, standing.token)
            or void(standing.nimg, standing.rollbacks, given_up)
        )

    def _writers(self) -> list[Record]:
        """Who took the lease and noted where it found the journal, its last holder fenced off."""
        found = records(self.storage, read=self._read_once)
        return [writer for writer in found if writer.note]

    def _read_once(self, name: str) -> bytes:
        """What is never written again; a run of many commands is looked at every other second."""
        if name not in self._known:
            self._known[name] = self.storage.read(name)
        return self._known[name]

    @property
    def journalled_nimg(self) -> int:
        """Where the journal ends; -1 where it is empty."""
        return max((line.nimg for line in self.journal()), default=-1)

    @property
    def released_nimg(self) -> int:
        """Up to where the journal may be told to the world, which cannot take anything back.

        A game that may be rolled back releases what lies before its newest anchor.
        """
        if self.experiment.watchdog.action != "rollback":
            return self.experiment.turns.total_nimg
        return self.newest_anchor

    @property
    def newest_anchor(self) -> int:
        """The nimg of the newest anchor that counts; -1 where there is none yet."""
        abandoned = self.abandoned()
        there = [kept for kept in standings(self.storage) if not abandoned(kept)]
        return max((kept.nimg for kept in there if kept.anchor), default=-1)

    def tell(self, text: str) -> None:
        """Leaves a line for the driver's screen and the run's log."""
        self.storage.write(f"{NOTES}/{now_ms():014d}-{uuid.uuid4().hex[:6]}.txt", text.encode())

    def told(self, *, but: Collection[str] = ()) -> list[tuple[str, str]]:
        """(name, text) of every line left for the driver `but` those of these names, in order of
        their writers' clocks.
        """
        names = [name for name in self.storage.names(NOTES) if name not in but]
        return [(name, self.storage.read(name).decode()) for name in names]

    def snapshots(self) -> list[Best]:
        """Every snapshot that is whole and counts, oldest first."""
        given_up = rollbacks(self.storage)
        return [kept for kept in self._all_snapshots() if not _is_void(kept, given_up)]

    def drop_given_up_snapshots(self) -> None:
        """Deletes the weights of snapshots that count no longer; pictures are drawn over."""
        given_up = rollbacks(self.storage)
        for kept in self._all_snapshots():
            if _is_void(kept, given_up):
                self.storage.delete(f"{kept.folder}/{CARD}")
                self.storage.delete(f"{kept.folder}/{TENSORS}")

    def _all_snapshots(self) -> list[Best]:
        names = (PurePosixPath(name) for name in self.storage.names(SNAPSHOTS))
        folders = [str(name.parent) for name in names if name.name == CARD]
        return [Best(folder, *read_card(self.storage, folder)) for folder in folders]

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


def _past_fences(writers: Sequence[Record]) -> Callable[[int, int], bool]:
    """Whether a tick at an nimg, by the writer of a token, came after another had taken over:
    past where that one found the journal.
    """
    return lambda nimg, token: any(
        writer.token > token and nimg > writer.note["journalled"] for writer in writers
    )


def _is_void(kept: Best, given_up: list[Rollback]) -> bool:
    return void(kept.card.nimg, kept.card.lineage.get("rollbacks", 0), given_up)


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
            f"to go on from its last checkpoint with what is new, add --fork; to start over "
            f"beside it, give another name: name={run.name}-changed; the old run is in "
            f"{run.storage.uri}"
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
