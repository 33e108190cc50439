"""Runs on a cluster that loses workers and nodes: real raylets, real signals, the same weights."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline.checkpoint import latest_checkpoint, newest_nimg
from pipeline.events import events_of
from pipeline.experiment_file import load_experiment
from pipeline.play import Outcome
from pipeline.run import Run
from tests.pipeline.desk import ROOT, Desk
from tests.pipeline.servers import DEADLINE_SEC

pytestmark = pytest.mark.slow


class Nodes:
    """Raylets on this machine: a head without CPUs, and two nodes with one each."""

    def __init__(self) -> None:
        from pipeline.cluster import LOCAL_OBJECT_STORE_BYTES  # it sets Ray's environment

        # isort: split
        from ray.cluster_utils import Cluster

        self.size = LOCAL_OBJECT_STORE_BYTES
        quiet = {"include_dashboard": False, "object_store_memory": self.size}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
        self.nodes = [self.add(), self.add()]

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=self.size)

    def kill(self, which: int) -> None:
        self.cluster.remove_node(self.nodes.pop(which), allow_graceful=False)

    def drain(self, which: int) -> None:
        from ray import _raylet
        from ray.core.generated import autoscaler_pb2

        client: Any = getattr(_raylet, "GcsClient")(address=self.cluster.address)  # noqa: B009
        reasons: Any = getattr(autoscaler_pb2, "DrainNodeReason")  # noqa: B009
        reason = reasons.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int((time.time() + DEADLINE_SEC) * 1000)
        told = client.drain_node(self.nodes[which].node_id, reason, "spot", deadline_ms)
        assert told[0], told


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("PYTHONPATH", str(ROOT))
        there = Nodes()
        try:
            patch.setenv("RAY_ADDRESS", str(there.cluster.address))
            yield there
        finally:
            there.cluster.shutdown()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


class Script:
    """Plays a run, and does one thing after another to it, each when it is time."""

    def __init__(self, desk: Desk, name: str, *overrides: str):
        from pipeline.dataset import open_shards

        storage, data = desk.folder / "runs", desk.folder / "data"
        loaded = load_experiment(
            desk.folder / "stripes.toml",
            [f"name={name}", f"cluster.storage={storage}", f"data.shards={data}",
             # Float32 would let the rounding of another number of workers grow to percents.
             "checkpoint.every_sec=0.5", "turns.precision=float64", *overrides],
        )  # fmt: skip
        self.shards = open_shards(str(data))
        self.run = Run.open(name, loaded.experiment, self.shards)
        self.steps: list[tuple[Callable[[], object], Callable[[], None]]] = []
        self.said: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def play(self, *steps: tuple[Callable[[], object], Callable[[], None]]) -> Outcome:
        from pipeline.cluster import connected
        from pipeline.fits import play_on_ray

        self.steps, self.deadline = list(steps), time.monotonic() + DEADLINE_SEC
        with connected(self.run.experiment.cluster):
            outcome = play_on_ray(
                self.run,
                self.shards,
                token=0,
                follow=self._follow,
                said=self.said.append,
                begun=lambda: True,
                events=self,
            )
        assert not self.steps, self.said
        return outcome

    def add(self, kind: str, **facts: float | str) -> None:
        self.events.append((kind, {"nimg": newest_nimg(self.run.storage), **facts}))

    def _follow(self) -> None:
        assert time.monotonic() < self.deadline, self.said
        if self.steps and self.steps[0][0]():
            self.steps.pop(0)[1]()

    def saved(self, attempt: int) -> bool:
        """Whether the attempt of this number has brought a checkpoint of its own."""
        begun = [facts for kind, facts in self.events if kind == "attempt"]
        return len(begun) >= attempt and newest_nimg(self.run.storage) > begun[-1]["nimg"]

    def heard(self, words: str) -> str:
        """The last line with these words; "" where there is none."""
        return next((line for line in reversed(self.said) if words in line), "")

    @property
    def sizes(self) -> list[int]:
        return [facts["workers"] for kind, facts in self.events if kind == "attempt"]


def actors(name: str) -> list[psutil.Process]:
    family = psutil.Process().children(recursive=True)
    return [child for child in family if name in " ".join(child.cmdline())]


def workers() -> list[psutil.Process]:
    return actors("RayTrainWorker")


def kill_controller() -> None:
    from pipeline.cluster import _controllers

    there = actors("TrainController")
    assert {process.pid for process in _controllers()} == {process.pid for process in there}
    there[-1].kill()


def players(run: Run) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(run.storage)
    assert found is not None
    assert found.nimg == 4000
    return {name: value for name, value in found.state.items() if not name.startswith("means/")}


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, desk: Desk) -> dict[str, torch.Tensor]:
    script = Script(desk, "undisturbed")
    assert script.play().finished
    assert script.sizes == [2]
    return players(script.run)


@pytest.fixture(scope="module")
def hang_sec(desk: Desk, undisturbed: dict[str, torch.Tensor]) -> int:
    """Longer than the first rounds, which are the slowest, take here."""
    run = desk.open_run("undisturbed")
    (playing,) = [event for event in events_of(run.storage) if event.kind == "playing"]
    first_tick = next(iter(run.journal()))
    return max(8, math.ceil(4 * (first_tick.time_ms - playing.time_ms) / 1000))


def test_killed_and_frozen_workers_and_sigterm_change_no_bit(
    nodes: Nodes, desk: Desk, undisturbed: dict[str, torch.Tensor], hang_sec: int
):
    script, hit = Script(desk, "hurt", f"cluster.hang_sec={hang_sec}"), []

    def strike(number: signal.Signals) -> Callable[[], None]:
        def at_last() -> None:
            hit.append(workers()[-1])
            hit[-1].send_signal(number)

        return at_last

    outcome = script.play(
        (lambda: script.saved(1), strike(signal.SIGKILL)),
        (lambda: script.saved(2), strike(signal.SIGSTOP)),
        (lambda: script.saved(3), lambda: os.kill(os.getpid(), signal.SIGTERM)),
    )
    killed = script.heard("died without a word, as by SIGKILL")
    assert f"process {hit[0].pid} on" in killed
    assert "again, 2 more" in killed
    hung = script.heard(f"made no progress for {hang_sec} s")
    # Either the one that waits for the frozen worker is missed, or the frozen one is found: it has
    # no stacks, and Ray may have ended it before it was looked at.
    frozen = f"process {hit[1].pid} on" in hung and "was frozen" in hung
    assert frozen or hung.startswith(("worker 0 made", "worker 1 made"))
    assert script.heard("stopping, with a checkpoint")
    stacks = [file.read_text() for file in (Path(script.run.storage.uri) / "hangs").iterdir()]
    assert stacks
    assert all(f"Timeout ({timedelta(seconds=hang_sec)})" in text for text in stacks)
    assert not outcome.finished
    assert outcome.nimg == newest_nimg(script.run.storage)
    assert not hit[1].is_running()
    resumed = Script(desk, "hurt")  # without a dashboard Ray's own cleaner frees no reservation
    assert resumed.play((lambda: resumed.saved(1), kill_controller)).finished
    assert resumed.heard("Ray Train failed")
    ended = players(script.run)
    assert [n for n, value in undisturbed.items() if not torch.equal(value, ended[n])] == []


def test_a_run_shrinks_and_grows_with_its_nodes_and_leaves_one_that_must_go(
    nodes: Nodes, desk: Desk, undisturbed: dict[str, torch.Tensor]
):
    from pipeline.nodes import silent_nodes, staying_nodes

    script = Script(desk, "elastic", "cluster.workers=[1, 2]")

    def hold() -> None:  # so that the short game lasts until the nodes were looked at
        for worker in workers():
            worker.suspend()

    def bring_one_back() -> None:
        # One worker has played and saved, and but for the head one node was there to play on.
        assert script.sizes == [2, 1]
        assert len(staying_nodes(silent_nodes())) == 2
        hold()
        nodes.nodes.append(nodes.add())

    def take_one_away() -> None:
        hold()
        nodes.drain(0)

    def go_on() -> None:
        for worker in workers():
            worker.resume()

    outcome = script.play(
        (lambda: script.saved(1), lambda: nodes.kill(0)),
        (lambda: script.saved(2), bring_one_back),
        (lambda: script.heard("there is room for 1 more"), go_on),
        (lambda: script.saved(3), take_one_away),
        (lambda: script.heard("of the run's nodes must go"), go_on),
    )
    assert outcome.finished
    assert script.sizes == [2, 1, 2, 1]
    assert script.heard("of the run's nodes left; on without")
    asked = [facts["nimg"] for kind, facts in script.events if kind == "regroup"]
    begun = [facts["nimg"] for kind, facts in script.events if kind == "attempt"][2:]
    assert all(after > before for before, after in zip(asked, begun, strict=True))
    ended = players(script.run)
    for name, value in undisturbed.items():
        torch.testing.assert_close(ended[name], value, rtol=1e-6, atol=1e-8, msg=name)
