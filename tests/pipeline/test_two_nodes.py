"""Two nodes with addresses of their own and a slow line between them, which is cut and comes back.

Each node is a network namespace of this machine; the line is a pair of virtual interfaces behind
a token bucket. Making them takes root and `ip`, `tc` and `iptables`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import latest_checkpoint
from pipeline.events import Event, events_of
from pipeline.folder import Folder
from pipeline.run import Run
from pipeline.stack.stack import RAY
from tests.pipeline.desk import ROOT, Desk, clean_environment
from tests.pipeline.servers import DEADLINE_SEC

pytestmark = pytest.mark.slow

HEAD, OTHER = "10.77.0.1", "10.77.0.2"
PORT = 6379
RATE = ("rate", "100mbit", "burst", "256kb", "latency", "50ms")
OBJECT_STORE_BYTES = 100 * 2**20
TOKEN = secrets.token_hex(32)
LONG = ("turns.total_kimg=6", "turns.precision=float64", "checkpoint.every_sec=2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Line:
    """Two namespaces and the line between them; both ends are called eth0, as on real nodes."""

    def __init__(self) -> None:
        mark = f"forger{os.getpid()}"
        self.rooms = (f"{mark}a", f"{mark}b")
        self._nodes: list[subprocess.Popen[bytes]] = []

    def lay(self) -> None:
        for room in self.rooms:
            ip("netns", "add", room)
        ends = [f"fv{os.getpid()}{letter}" for letter in "ab"]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for room, end, address in zip(self.rooms, ends, (HEAD, OTHER), strict=True):
            ip("link", "set", end, "netns", room)
            ip("-n", room, "link", "set", end, "name", "eth0")
            ip("-n", room, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", room, "link", "set", device, "up")
            limit = ["tc", "-n", room, "qdisc", "add", "dev", "eth0", "root", "tbf", *RATE]
            subprocess.run(limit, check=True, capture_output=True)

    def inside(self, room: int, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.rooms[room], *words]

    def cut(self) -> None:
        """Whatever comes over the line is dropped, without a word to either end."""
        for room in (0, 1):
            drop = ("iptables", "-A", "INPUT", "-i", "eth0", "-j", "DROP")
            subprocess.run(self.inside(room, *drop), check=True, capture_output=True)

    def mend(self) -> None:
        for room in (0, 1):
            subprocess.run(
                self.inside(room, "iptables", "-F", "INPUT"), check=True, capture_output=True
            )

    def start_node(self, room: int) -> None:
        """A raylet with one CPU; the first one brings the head with it."""
        where = (
            ["--head", f"--port={PORT}", "--include-dashboard=false"]
            if room == 0
            else [f"--address={HEAD}:{PORT}"]
        )
        own = f"--node-ip-address={(HEAD, OTHER)[room]}"
        size = f"--object-store-memory={OBJECT_STORE_BYTES}"
        ray = str(Path(sys.executable).with_name("ray"))
        words = [ray, "start", "--block", "--num-cpus=1", "--disable-usage-stats", own, size]
        self._nodes.append(
            subprocess.Popen(
                self.inside(room, *words, *where),
                env=environment(),
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def wait_for_nodes(self, count: int) -> None:
        ask = (
            f"import ray; ray.init(address='{HEAD}:{PORT}', logging_level=50);"
            "print(sum(n['Alive'] for n in ray.nodes()))"
        )
        deadline, done = time.monotonic() + DEADLINE_SEC, None
        while time.monotonic() < deadline:
            done = subprocess.run(
                self.inside(0, sys.executable, "-c", ask),
                env=environment(),
                capture_output=True,
                text=True,
            )
            if done.stdout.strip() == str(count):
                return
            time.sleep(1)
        raise AssertionError(f"{count} nodes did not come up: {done and done.stderr[-500:]}")

    def node_left(self, room: int) -> bool:
        return self._nodes[room].poll() is not None

    def take_down(self) -> None:
        for node in self._nodes:
            if node.poll() is None:
                node.send_signal(signal.SIGTERM)
        for node in self._nodes:
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
        for room in self.rooms:
            left = subprocess.run(
                ["ip", "netns", "pids", room], capture_output=True, text=True, check=False
            )
            for pid in left.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", room], capture_output=True, check=False)


def environment() -> dict[str, str]:
    return clean_environment() | RAY | {"PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    lacking = [word for word in ("ip", "tc", "iptables") if shutil.which(word) is None]
    if lacking or os.geteuid() != 0:
        pytest.skip(f"network namespaces need root and {', '.join(lacking) or 'nothing else'}")
    line = Line()
    try:
        try:
            line.lay()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this kernel makes no network namespaces: {error.stderr}")
        line.start_node(0)
        line.wait_for_nodes(1)
        line.start_node(1)
        line.wait_for_nodes(2)
        yield line
    finally:
        line.take_down()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def undisturbed(desk: Desk) -> dict[str, torch.Tensor]:
    """The same game by two workers on one node, on which the line has no say."""
    desk.run("train", "stripes.toml", "name=undisturbed", *LONG)
    return players(desk, "undisturbed")


def players(desk: Desk, name: str) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(desk.open_run(name).storage)
    assert found is not None
    assert found.nimg == 6_000
    return {name: value for name, value in found.state.items() if not name.startswith("means/")}


class Command:
    """`forger train` on the first node, over both."""

    def __init__(self, line: Line, desk: Desk, name: str):
        self.folder = desk.folder
        self.storage = Folder(desk.folder / "runs" / name)
        self.process = subprocess.Popen(
            line.inside(
                0, sys.executable, "-m", "jobs", "train", "stripes.toml", f"name={name}", *LONG
            ),
            cwd=desk.folder,
            env=environment() | {"RAY_ADDRESS": f"{HEAD}:{PORT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_until(self, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SEC
        while not so():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, self.process.kill()
            time.sleep(0.2)

    def nimg(self) -> int:
        if not self.storage.exists("run.json"):
            return 0
        return Run.at(self.storage).journalled_nimg

    def attempts(self) -> list[Event]:
        return [event for event in events_of(self.storage) if event.kind == "attempt"]

    def end(self) -> str:
        try:
            output, _ = self.process.communicate(timeout=DEADLINE_SEC)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.returncode == 0, output
        return output


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def test_ten_seconds_without_a_line_are_waited_for(
    line: Line, desk: Desk, undisturbed: dict[str, torch.Tensor]
):
    command = Command(line, desk, "ten")
    command.wait_until(lambda: command.nimg() >= 1000)
    line.cut()
    at = command.nimg()
    time.sleep(10)
    assert command.nimg() <= at + 128  # the line matters: a tick that was on its way at most
    line.mend()
    output = command.end()
    assert len(command.attempts()) == 1, output
    assert {event.facts["workers"] for event in command.attempts()} == {2}
    assert differing(undisturbed, players(desk, "ten")) == []


def test_a_line_that_is_away_until_its_node_is_given_up_is_one_restart(
    line: Line, desk: Desk, undisturbed: dict[str, torch.Tensor]
):
    """The head gives the node up, and the node itself when it hears of that; what starts nodes
    starts it again, as Kubernetes or systemd do.
    """
    command = Command(line, desk, "long")
    command.wait_until(lambda: command.nimg() >= 1000)
    line.cut()
    line.wait_for_nodes(1)
    line.mend()
    command.wait_until(lambda: line.node_left(1))
    line.start_node(1)
    output = command.end()
    assert len(command.attempts()) == 2, output
    assert differing(undisturbed, players(desk, "long")) == []
