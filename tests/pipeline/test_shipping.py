"""A journal on its way to a real MLflow server that is killed, frozen, or loses its answers."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from gan.config import ConfigError
from pipeline import shipping
from pipeline.backend import Backend, backend
from pipeline.dataset import ShardSet
from pipeline.experiment_file import experiment_from_dict
from pipeline.journal import JournalLine, JournalWriter
from pipeline.lease import FencedError
from pipeline.rollbacks import Rollback, record_rollback
from pipeline.run import Run
from pipeline.shipping import Shipper
from pipeline.tracking import open_tracker
from tests.chaos.proxy import Proxy
from tests.pipeline.proxy import FaultyProxy
from tests.pipeline.servers import LossyProxy, mlflow_server

pytestmark = pytest.mark.slow
NET_SEC = 300  # nothing is judged by it


@pytest.fixture(autouse=True)
def little_patience(monkeypatch) -> None:
    """As in life, but in seconds instead of minutes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(shipping, "LONGEST_PAUSE_SEC", 1.0)


class Server:
    """An MLflow server that can be killed, frozen and started again, at an address that stays."""

    def __init__(self, folder: Path):
        self.folder, self._running = folder, ExitStack()
        self.store = f"sqlite:///{folder / 'server.db'}"
        self.upstream = ""
        self.start()
        self._proxy = Proxy(self.upstream, status=500)
        self.proxy = self._proxy.__enter__()

    def start(self) -> None:
        artifacts = str(self.folder / "artifacts")
        serving = mlflow_server(self.store, artifacts, self.folder)
        self.upstream = self._running.enter_context(serving)
        # The first of its requests makes the tables, and may take longer than our patience.
        first = f"{self.upstream}/api/2.0/mlflow/experiments/search?max_results=1"
        urllib.request.urlopen(first, timeout=NET_SEC).close()
        if hasattr(self, "proxy"):
            self.proxy.upstream = self.upstream

    def kill(self) -> None:
        self._running.close()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        port = self.upstream.rpartition(":")[2]
        (mine,) = [p for p in psutil.Process().children() if port in p.cmdline()]
        os.killpg(mine.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(mine.pid, signal.SIGCONT)

    @property
    def where(self) -> Backend:
        return Backend(self.proxy.uri, None)

    def close(self) -> None:
        self._proxy.__exit__()
        self.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.close()


def begin(folder: Path, stripes: ShardSet, name: str, **watchdog: str) -> Run:
    values = {
        "name": name,
        "data": {"shards": stripes.uri},
        "turns": {"total_kimg": 10},
        "watchdog": watchdog,
        "cluster": {"storage": str(folder)},
    }
    return Run.open(name, experiment_from_dict(values), stripes)


class Pen:
    """Writes a journal by hand, a tick every 100 images, each fifth with a picture."""

    def __init__(self, run: Run):
        self.run, self.nimg = run, run.journalled_nimg if run.journalled_nimg > 0 else 0
        self.writer = JournalWriter(run.storage, last=run.journalled_nimg)

    def write(self, count: int) -> None:
        for _ in range(count):
            self.nimg += 100
            picture = None
            if self.nimg % 500 == 0:
                picture, file = f"snapshots/{self.nimg:012d}/samples.png", io.BytesIO()
                Image.new("RGB", (4, 4)).save(file, "png")
                self.run.storage.write(picture, file.getvalue())
            metrics = {"d/loss": self.nimg / 7, "g/loss": -float(self.nimg)}
            self.writer.add(JournalLine(self.nimg, self.nimg * 10, 1.0, metrics, picture))


def arrived(server: Server, run: Run) -> tuple[list[int], list[int], list[str]]:
    """Steps of a metric as the server has them, steps of the pictures that have both of their
    files, statuses of the runs.
    """
    client = Backend(server.upstream, None).client()
    experiment = client.get_experiment_by_name(run.experiment.name)
    if experiment is None:
        return [], [], []
    found = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`forger.run_id` = '{run.id}'"
    )
    if not found:
        return [], [], []
    run_id = found[0].info.run_id
    for metric, factor in (("d/loss", 1 / 7), ("g/loss", -1)):
        history = client.get_metric_history(run_id, metric)
        assert [p.value for p in history] == pytest.approx([p.step * factor for p in history])
        steps = [p.step for p in history]
    names = [Path(f.path).name for f in client.list_artifacts(run_id, "images")]
    stems: dict[str, set[str]] = {}
    for name in names:
        stem, _, kind = name.rpartition(".")
        stems.setdefault(stem.removesuffix("+compressed"), set()).add(kind)
    assert all(kinds == {"png", "webp"} for kinds in stems.values()), names
    pictures = sorted(int(stem.split("+")[2]) for stem in stems)
    return steps, pictures, [f.info.status for f in found]


def wait_for(condition) -> None:
    deadline = time.monotonic() + NET_SEC
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def assert_told_in_turn(said: list[str]) -> None:
    """A trouble, its end, a trouble, its end: each is told once."""
    assert len(said) >= 2
    assert all(line.startswith("MLflow takes nothing (") for line in said[::2]), said
    assert said[1::2] == ["MLflow takes what it missed again"] * (len(said) // 2), said


def test_points_survive_a_killed_a_frozen_and_a_refusing_server_in_order_and_once(
    server, tmp_path, stripes
):
    run, said = begin(tmp_path, stripes, "storm"), []
    pen, shipper = Pen(run), Shipper(server.where, run, said=said.append)

    def write(count: int) -> None:
        pen.write(count)
        shipper.nudge()

    write(10)
    wait_for(lambda: shipper.shipped_nimg == 1000)
    server.kill()
    write(10)
    wait_for(lambda: shipper.trouble is not None)
    write(10)
    server.start()
    wait_for(lambda: shipper.shipped_nimg == 3000)
    wait_for(lambda: len(said) % 2 == 0)
    assert_told_in_turn(said)
    with server.frozen():
        write(10)
        wait_for(lambda: shipper.trouble is not None)
        write(5)
    struck, server.proxy.mode = server.proxy.struck, "refuse"
    write(5)
    wait_for(lambda: server.proxy.struck > struck)
    server.proxy.mode = "pass"
    assert shipper.finish("FINISHED", deadline_sec=NET_SEC)
    steps, pictures, statuses = arrived(server, run)
    assert steps == list(range(100, 5001, 100))
    assert pictures == list(range(500, 5001, 500))
    assert statuses == ["FINISHED"]
    assert_told_in_turn(said)


def test_a_nudge_waits_for_nothing(tmp_path, stripes, monkeypatch):
    """The driver's loop goes on while MLflow does not answer."""
    asked, answer, answered = threading.Event(), threading.Event(), []

    def open_at_last(*words, **named):
        asked.set()
        answered.append(answer.wait(NET_SEC))
        return open_tracker(*words, **named)

    monkeypatch.setattr(shipping, "open_tracker", open_at_last)
    run = begin(tmp_path, stripes, "nudged")
    shipper = Shipper(backend(str(tmp_path)), run, said=lambda text: None)
    assert asked.wait(NET_SEC)
    for _ in range(100):
        shipper.nudge()
    assert not answered
    answer.set()
    assert shipper.finish("FINISHED", deadline_sec=NET_SEC)


def test_what_could_not_be_delivered_at_the_end_is_delivered_by_the_next_one(
    server, tmp_path, stripes
):
    run = begin(tmp_path, stripes, "late")
    pen, calls = Pen(run), []
    server.proxy.mode = "down"
    shipper = Shipper(server.where, run, said=lambda text: None)
    pen.write(30)
    with pytest.raises(ConfigError, match="cannot be used"):
        shipper.wait_for_first_answer(NET_SEC)
    began = time.monotonic()
    assert not shipper.finish("FINISHED", deadline_sec=0.5, last=lambda tracker: calls.append(1))
    assert time.monotonic() - began < 20  # without its deadline it takes 30
    assert not calls
    server.proxy.mode = "pass"
    again = Shipper(server.where, Run.at(run.storage), said=lambda text: None)
    assert again.finish("FINISHED", deadline_sec=NET_SEC, last=lambda tracker: calls.append(1))
    assert calls == [1]
    assert arrived(server, run) == (list(range(100, 3001, 100)), list(range(500, 3001, 500)),
                                    ["FINISHED"])  # fmt: skip
    third = Shipper(server.where, Run.at(run.storage), said=lambda text: None)
    assert third.finish("FINISHED", deadline_sec=NET_SEC)  # nothing is doubled by doing it again
    assert arrived(server, run)[0] == list(range(100, 3001, 100))


@pytest.mark.parametrize("mode", ["down", "slow", "refuse", "cut"])
def test_a_network_that_fails_from_the_start_delays_the_points_and_loses_none(
    server, tmp_path, stripes, monkeypatch, mode
):
    if mode == "slow":
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(NET_SEC))
    run, said = begin(tmp_path, stripes, f"network-{mode}"), []
    struck, server.proxy.mode = server.proxy.struck, mode
    pen, shipper = Pen(run), Shipper(server.where, run, said=said.append)
    pen.write(10)
    if mode == "slow":
        wait_for(lambda: server.proxy.struck > struck + 1)  # of the dozen that its calls are
    else:
        wait_for(lambda: shipper.trouble is not None)
    server.proxy.mode = "pass"
    assert shipper.finish("FINISHED", deadline_sec=NET_SEC)
    if mode == "slow":
        assert said == []
    else:
        assert_told_in_turn(said)
    assert arrived(server, run) == (list(range(100, 1001, 100)), [500, 1000], ["FINISHED"])


def test_a_picture_whose_upload_broke_off_half_way_is_made_whole(server, tmp_path, stripes):
    """MLflow keeps a picture as two files, and the slider shows the second."""
    run = begin(tmp_path, stripes, "half")
    Pen(run).write(5)

    def first_thumbnail(method: str, path: str) -> bool:
        return method == "PUT" and path.endswith(".webp") and len(proxy.faults) < 2

    with FaultyProxy(server.upstream, mode="503", applies=first_thumbnail) as proxy:
        shipper = Shipper(Backend(proxy.uri, None), run, said=lambda text: None)
        assert shipper.finish("FINISHED", deadline_sec=NET_SEC)
        assert len(proxy.faults) == 2
    assert arrived(server, run)[1] == [500]


def test_lost_answers_make_no_second_run_and_no_second_point(server, tmp_path, stripes):
    run = begin(tmp_path, stripes, "lossy")
    Pen(run).write(20)
    with LossyProxy(server.upstream, share=0.25, seed=3) as proxy:
        shipper = Shipper(Backend(proxy.uri, None), run, said=lambda text: None)
        assert shipper.finish("FINISHED", deadline_sec=NET_SEC)
        assert len(proxy.lost) > 3
    steps, pictures, statuses = arrived(server, run)
    assert steps == list(range(100, 2001, 100))
    assert pictures == list(range(500, 2001, 500))
    assert statuses == ["FINISHED"]


def test_the_lost_answer_of_the_create_itself_makes_no_second_run(server, tmp_path, stripes):
    run = begin(tmp_path, stripes, "created")
    Pen(run).write(3)

    def first_creates(method: str, path: str) -> bool:
        return path.endswith("/runs/create") and len(proxy.lost) < 1

    with LossyProxy(server.upstream, share=1.0, applies=first_creates) as proxy:
        shipper = Shipper(Backend(proxy.uri, None), run, said=lambda text: None)
        assert shipper.finish("KILLED", deadline_sec=NET_SEC)
        assert len(proxy.lost) == 1
    assert arrived(server, run) == ([100, 200, 300], [], ["KILLED"])
    client = Backend(server.upstream, None).client()
    experiment = client.get_experiment_by_name("created")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.data.params["turns.total_kimg"] == "10.0"


def test_what_a_rollback_may_take_back_is_kept_until_the_end_and_rollbacks_are_told(
    tmp_path, stripes
):
    run = begin(tmp_path, stripes, "careful", action="rollback")
    where = backend(str(tmp_path))
    Pen(run).write(5)
    record_rollback(run.storage, Rollback(1, 900, 500, "collapsing", 0.5))
    shipper = Shipper(where, run, said=lambda text: None)
    shipper.wait_for_first_answer(NET_SEC)
    assert shipper.shipped_nimg == -1
    assert shipper.finish("FINISHED", deadline_sec=NET_SEC)
    assert shipper.shipped_nimg == 500
    again = Shipper(where, run, said=lambda text: None)  # what a resumed driver tells once more
    assert again.finish("FINISHED", deadline_sec=NET_SEC)
    client = where.client()
    experiment = client.get_experiment_by_name("careful")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.data.tags["forger.rollbacks"] == "1"
    assert "rollbacks.txt" in {f.path for f in client.list_artifacts(tracked.info.run_id)}
    pictures = [f.path for f in client.list_artifacts(tracked.info.run_id, "images")]
    cards = [path for path in pictures if "samples+step+901+" in path]
    assert [Path(card).suffix for card in sorted(cards)] == [".webp", ".png"]
    shown = client.download_artifacts(tracked.info.run_id, sorted(cards)[1])
    with Image.open(shown) as card:
        assert np.asarray(card.convert("L")).min() < 64, "the card has no text"


def test_a_driver_that_was_fenced_off_ships_nothing_more(tmp_path, stripes):
    run = begin(tmp_path, stripes, "zombie")
    Pen(run).write(5)

    def fence() -> None:
        raise FencedError("another one writes")

    shipper = Shipper(backend(str(tmp_path)), run, fence=fence, said=lambda text: None)
    assert not shipper.finish("KILLED", deadline_sec=NET_SEC)
    assert not run.storage.exists("shipped.json")


def test_an_error_that_is_none_of_mlflows_is_raised_at_the_end(tmp_path, stripes):
    run = begin(tmp_path, stripes, "wrong")

    def last(tracker) -> None:
        raise RuntimeError("it draws other images")

    shipper = Shipper(backend(str(tmp_path)), run, said=lambda text: None)
    with pytest.raises(RuntimeError, match="other images"):
        shipper.finish("FINISHED", deadline_sec=NET_SEC, last=last)
