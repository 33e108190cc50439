"""A run of the product, from outside: its command, how far it is, and whether it ended right."""

from __future__ import annotations

import json
import math
import shutil
import sys
from typing import Any

import torch

from pipeline.checkpoint import latest_checkpoint, newest_nimg
from pipeline.folder import Folder
from pipeline.run import Run
from pipeline.storage import open_storage
from tests.chaos.game import EXPERIMENT, STAGES, TOLERANCE, Stage
from tests.chaos.stand import Stand

OWN_CLOCK = ("speed/", "host/", "goodput/")  # what no two runs have in common
ALLOWED = ("run.json", "result.json", "shipped.json", "lock", "goodput.json")
ALLOWED_FOLDERS = (
    "journal/", "checkpoints/", "snapshots/", "lease/", "events/", "rollbacks/", "shipped/",
    "released/", "notes/",
)  # fmt: skip


class Ours:
    """One run of `forger train`."""

    arm = "forger"
    max_starts = 25

    def __init__(self, stand: Stand, stage: str, name: str, *, settings: tuple[str, ...] = ()):
        self.stand, self.name, self.stage = stand, name, STAGES.get(stage, Stage())
        self.settings = (*self.stage.settings, *settings)
        self.uri = f"{stand.runs(stage)}/{name}"
        self.storage = open_storage(self.uri)
        for old in self.storage.names():  # in a folder that was worked in before
            self.storage.delete(old)
        self.folder = stand.folder / "commands" / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "chaos.toml").write_text(EXPERIMENT)
        (self.folder / "data").symlink_to(stand.folder / "data")
        self.total_nimg = round(self._total_kimg() * 1000)
        self._seen = -1
        self._run: Run | None = None

    def _total_kimg(self) -> float:
        told = [s for s in self.settings if s.startswith("turns.total_kimg=")]
        return float(told[-1].partition("=")[2]) if told else 16

    @property
    def command(self) -> list[str]:
        """What is typed, first and to go on."""
        return [
            sys.executable, "-m", "jobs", "train", "chaos.toml", f"name={self.name}",
            f"cluster.storage={self.uri.rpartition('/')[0]}",
            f"tracking.experiment={self.arm}", "tracking.model=chaos", *self.settings,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Of the command."""
        on_nodes = {"RAY_ADDRESS": self.stand.nodes.address} if self.stage.on_nodes else {}
        return self.stand.environment() | on_nodes

    @property
    def run(self) -> Run | None:
        """The run, once there is one."""
        if self._run is None and self.storage.exists("run.json"):
            self._run = Run.at(self.storage)
        return self._run

    def progress(self) -> int:
        """The newest tick that was journalled, in images."""
        if self.run is not None:
            for line in self.run.journal(after=self._seen):
                self._seen = line.nimg
        return max(0, self._seen)

    def is_complete(self) -> bool:
        """Whether the run says that it is over, with all of its points delivered."""
        result = None if self.run is None else self.run.result
        return result is not None and result.get("delivered", True)

    def checkpoint_nimg(self) -> int:
        """The newest checkpoint by its name."""
        return newest_nimg(self.storage)

    def resumptions(self) -> list[tuple[float, int]]:
        """When workers began to play, and from where, as the run notes it."""
        return [(e["time_ms"] / 1000, int(e["nimg"])) for e in self.events("playing")]

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """What the drivers noted, in order of time; of one kind, where one is named."""
        noted = [
            json.loads(text)
            for name in self.storage.names("events")
            for text in self.storage.read(name).decode().splitlines()
        ]
        wanted = [event for event in noted if kind in ("", event["kind"])]
        return sorted(wanted, key=lambda event: event["time_ms"])

    def rolled_back_nimg(self) -> list[int]:
        """How many images each rollback of the watchdog gave up, in order."""
        told = [json.loads(self.storage.read(name)) for name in self.storage.names("rollbacks")]
        return [back["from_nimg"] - back["to_nimg"] for back in told]

    def take_rollbacks_of(self, other: Ours) -> None:
        """Begins this run with another's rollbacks, as if they had been known."""
        for name in other.storage.names("rollbacks"):
            self.storage.write(name, other.storage.read(name))

    def newest_tensors(self) -> str | None:
        """The name of the newest checkpoint's largest file."""
        found: dict[str, list[str]] = {}
        for name in self.storage.names("checkpoints"):
            found.setdefault(name.split("/")[1], []).append(name)
        whole = [names for _, names in sorted(found.items()) if len(names) > 1]
        return max(whole[-1], key=lambda n: n.endswith(".safetensors")) if whole else None

    def damage(self, how: str) -> bool:
        """Cuts short, flips a bit of or deletes the newest checkpoint; False for none."""
        name = self.newest_tensors()
        if name is None:
            return False
        if how == "delete":
            for part in self.storage.names(name.rpartition("/")[0]):
                self.storage.delete(part)
            return True
        data = bytearray(self.storage.read(name))
        if how == "cut":
            del data[len(data) // 2 :]
        else:
            data[len(data) // 2] ^= 1
        self.storage.write(name, bytes(data))
        return True

    def weights(self) -> dict[str, torch.Tensor]:
        """All that the last checkpoint holds, but for means of an unfinished tick."""
        found = latest_checkpoint(self.storage)
        if found is None or found.nimg < self.total_nimg:
            return {}
        return {k: v for k, v in found.state.items() if not k.startswith("means/")}

    def curve(self) -> dict[int, dict[str, float]]:
        """nimg -> the metrics that an equal run has too."""
        assert self.run is not None
        return {
            line.nimg: {k: v for k, v in line.metrics.items() if not k.startswith(OWN_CLOCK)}
            for line in self.run.journal()
        }

    def verdict(self, twin: Any) -> list[str]:
        """All that is wrong with a complete run, held against its undisturbed twin."""
        return [
            *weights_differ(self.weights(), twin.weights(), exact=self.stage.exact),
            *curves_differ(self.curve(), twin.curve(), exact=self.stage.exact),
            *self._tracked_otherwise(),
            *self._litter(),
        ]

    def _tracked_otherwise(self) -> list[str]:
        """Where MLflow's points are not the journal's, each once."""
        assert self.run is not None
        client = self.stand.tracking.client()
        experiment = client.get_experiment_by_name(self.arm)
        assert experiment is not None
        mine = f"tags.`forger.run_id` = '{self.run.id}'"
        runs = client.search_runs([experiment.experiment_id], filter_string=mine)
        if len(runs) != 1:
            return [f"MLflow has {len(runs)} runs of this one"]
        wrong = [] if runs[0].info.status == "FINISHED" else [f"MLflow: {runs[0].info.status}"]
        journalled: dict[str, list[tuple[int, float]]] = {}
        for line in self.run.journal():
            for name, value in line.metrics.items():
                if math.isfinite(value):
                    journalled.setdefault(name, []).append((line.nimg, value))
        for name, points in journalled.items():
            told = client.get_metric_history(runs[0].info.run_id, name)
            got = sorted((p.step, p.value) for p in told)
            wrong += points_differ(f"MLflow's {name}", got, points)
        return wrong

    def _litter(self) -> list[str]:
        names = self.storage.names()
        if isinstance(self.storage, Folder):
            names += [p.name for p in self.storage.root.rglob("*.part")]
        told = " ".join(str(event["why"]) for event in self.events("lost"))
        odd = [
            name
            for name in names
            if name not in ALLOWED
            and not name.startswith(ALLOWED_FOLDERS)
            # The stacks of a worker that hung are kept where the failure says so, and only there.
            and not (name.startswith("hangs/") and name in told)
        ]
        wrong = [f"left behind: {name}" for name in odd]
        files: dict[str, int] = {}
        for name in names:
            if name.startswith("checkpoints/"):
                files[name.split("/")[1]] = files.get(name.split("/")[1], 0) + 1
        wrong += [f"half a checkpoint: {nimg}" for nimg, count in files.items() if count < 2]
        return wrong + [f"dangling upload: {key}" for key in self.stand.dangling_uploads()]


def weights_differ(mine: Any, theirs: Any, *, exact: bool) -> list[str]:
    """What is wrong with one set of tensors against another."""
    if mine.keys() != theirs.keys() or not mine:
        return [f"the last checkpoint holds {len(mine)} tensors, its twin's {len(theirs)}"]
    if exact:
        unequal = [name for name in mine if not torch.equal(mine[name], theirs[name])]
        return (
            [f"{len(unequal)} of {len(mine)} tensors differ, as {unequal[0]}"] if unequal else []
        )
    worst, name = largest_difference(mine, theirs)
    return [] if worst <= TOLERANCE else [f"{name} differs by {worst:.2g} of its size"]


def largest_difference(mine: Any, theirs: Any) -> tuple[float, str]:
    """The largest difference of any tensor, as a share of that tensor's largest value."""
    shares = [
        (
            (mine[k].double() - theirs[k].double()).abs().max().item()
            / max(1e-3, theirs[k].double().abs().max().item()),
            k,
        )
        for k in mine
        if mine[k].numel()
    ]
    return max(shares)


def curves_differ(mine: Any, theirs: Any, *, exact: bool) -> list[str]:
    """What is wrong with one journal against another, {nimg: {metric: value}}."""
    wrong = []
    if mine.keys() != theirs.keys():
        missing, more = sorted(theirs.keys() - mine.keys()), sorted(mine.keys() - theirs.keys())
        wrong.append(
            f"ticks: {len(missing)} missing {missing[:3]}, {len(more)} too many {more[:3]}"
        )
    for nimg in sorted(mine.keys() & theirs.keys()):
        a, b = mine[nimg], theirs[nimg]
        unequal = sorted(
            name
            for name in a.keys() | b.keys()
            if name not in a or name not in b or not _same(a[name], b[name], exact=exact)
        )
        if unequal:
            name = unequal[0]
            wrong.append(f"at {nimg} {name} is {a.get(name)}, its twin's {b.get(name)}")
    return wrong[:4]


def _same(a: float, b: float, *, exact: bool) -> bool:
    if exact:
        return a == b or (math.isnan(a) and math.isnan(b))
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4)


def points_differ(what: str, got: list, expected: list) -> list[str]:
    """Lost, doubled and other points of one metric's history."""
    steps, wanted = [step for step, _ in got], [step for step, _ in expected]
    lost, doubled = len(set(wanted) - set(steps)), len(steps) - len(set(steps))
    if lost or doubled:
        return [f"{what}: {lost} points lost, {doubled} doubled"]
    return [] if got == expected else [f"{what} has other values than the journal"]
