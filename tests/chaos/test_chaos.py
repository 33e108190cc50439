"""The chaos suite's own laws, and a small seeded part of it: real runs that are really broken."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.bench.goodput_model import Costs, formula, mttf_sec, simulated, young_daly
from tests.chaos.__main__ import one_run, parsed
from tests.chaos.faults import FAULTS, kinds
from tests.chaos.game import ROOT, STAGES
from tests.chaos.ours import curves_differ, points_differ, weights_differ
from tests.chaos.proxy import Proxy
from tests.chaos.scene import seconds_to_recover
from tests.chaos.schedule import EARLIEST, LATEST, exponential, schedule
from tests.chaos.soak import model, outage
from tests.chaos.table import markdown


def test_a_schedule_is_a_function_of_its_seed():
    every = kinds(storage="s3")
    assert schedule(0, 100, every) == schedule(0, 100, every)
    assert schedule(0, 100, every) != schedule(1, 100, every)
    assert exponential(3, mean_sec=120, within_sec=600, kinds=["a"]) == exponential(
        3, mean_sec=120, within_sec=600, kinds=["a"]
    )


@pytest.mark.parametrize("count", [1, 40, 100])
def test_every_fault_of_a_schedule_is_dealt_once_and_in_order(count):
    every = kinds(storage="s3")
    plans = schedule(0, count, every)
    struck = [one for plan in plans for one in plan.faults]
    assert len(struck) == count
    assert len({plan.name for plan in plans}) == len(plans)
    for plan in plans:
        moments = [one.at for one in plan.faults]
        assert moments == sorted(moments)
        assert all(EARLIEST <= at <= LATEST for at in moments)
        assert all(every[one.kind].stage == plan.stage for one in plan.faults)
        assert len(moments) <= every[plan.faults[0].kind].per_run


def test_a_hundred_faults_are_of_all_kinds_as_often_as_they_weigh():
    every = kinds(storage="s3")
    counts = Counter(one.kind for plan in schedule(0, 100, every) for one in plan.faults)
    assert counts.keys() == every.keys()
    share = 100 / sum(kind.weight for kind in every.values())
    for name, kind in every.items():
        # In each shuffled round exactly its weight, and the last round may be cut anywhere.
        assert abs(counts[name] - share * kind.weight) <= kind.weight


def test_a_run_is_not_played_for_faults_that_its_arm_cannot_suffer():
    nodes = schedule(0, 4, kinds(storage="s3", only=("node",)))
    options = parsed(["--arm", "plain"])
    played = [one_run(None, options, plan, None) for plan in nodes]  # type: ignore[arg-type]
    assert [one.struck[0].skipped for one in played] == ["not for this arm"] * len(nodes)
    assert "**0 recovered, 0 in runs that ended equal**" in markdown(
        "plain", ["a", "command"], played, planned=4
    )


def test_outages_that_overlap_are_counted_once():
    assert outage([]) == 0
    assert outage([(30, 5), (0, 10)]) == 15
    assert outage([(5, 10), (0, 10), (30, 5)]) == 20  # struck again while it recovered
    assert outage([(0, 10), (2, 3)]) == 10  # the second was over first
    assert model(100, outage([(0, 10), (50, 30)]) / 2) == pytest.approx(0.8)


def test_every_fault_has_a_stage():
    assert {fault.kind.stage for fault in FAULTS.values()} <= STAGES.keys()


def test_faults_of_a_poisson_process_are_as_far_apart_as_their_mean():
    moments = [at for at, _, _ in exponential(0, mean_sec=2, within_sec=20_000, kinds=["a"])]
    assert len(moments) == pytest.approx(10_000, rel=0.03)
    assert moments == sorted(moments)


def test_a_run_has_recovered_with_its_first_tick_after_the_silence():
    ticks = [(0.0, 10), (1.0, 20), (1.5, 30), (9.0, 40), (9.5, 50)]
    assert seconds_to_recover(ticks, 1.2, silenced=True) == pytest.approx(7.8)
    assert seconds_to_recover(ticks, 1.2, silenced=False) == pytest.approx(0.3)
    assert seconds_to_recover(ticks, 9.2, silenced=True) == pytest.approx(0.3)
    assert seconds_to_recover(ticks, 9.6, silenced=True) is None


def test_a_lost_a_doubled_and_a_changed_point_are_told_apart():
    right = [(1, 0.5), (2, 0.25)]
    assert points_differ("x", right, right) == []
    assert points_differ("x", right[:1], right) == ["x: 1 points lost, 0 doubled"]
    assert points_differ("x", [*right, (2, 0.25)], right) == ["x: 0 points lost, 1 doubled"]
    assert points_differ("x", [(1, 0.5), (2, 0.3)], right) != []


def test_one_bit_of_one_weight_and_one_tick_are_noticed():
    import torch

    ones = {"G.weight": torch.ones(3)}
    assert weights_differ(ones, ones, exact=True) == []
    assert weights_differ(ones, {"G.weight": torch.ones(3).nextafter(torch.zeros(3))}, exact=True)
    assert weights_differ({}, {}, exact=True)
    curve = {16: {"d/loss": 0.5}, 32: {"d/loss": 0.25}}
    assert curves_differ(curve, curve, exact=True) == []
    assert curves_differ({16: {"d/loss": 0.5}}, curve, exact=True)
    assert curves_differ(curve | {32: {"d/loss": 0.2500001}}, curve, exact=True)


@pytest.mark.parametrize("gpus", [64, 512])
def test_simulated_goodput_is_the_formula_to_first_order_and_best_where_young_and_daly_say(
    gpus,
):
    costs, mttf = Costs(), mttf_sec(3e-3, gpus)
    best = young_daly(mttf, costs)
    for interval in (best / 4, best, best * 4):
        assert simulated(interval, mttf, costs) == pytest.approx(
            formula(interval, mttf, costs), abs=3e-4
        )
    assert simulated(best, mttf, costs) > simulated(best / 4, mttf, costs)
    assert simulated(best, mttf, costs) > simulated(best * 4, mttf, costs)


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(body)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def echo():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.seen = []  # type: ignore[attr-defined]
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def put(uri: str, body: bytes) -> bytes:
    request = urllib.request.Request(uri, body, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def test_the_proxy_passes_refuses_hangs_up_and_cuts(echo):
    with Proxy(f"http://127.0.0.1:{echo.server_address[1]}") as proxy:
        assert put(proxy.uri, b"whole") == b"whole"
        proxy.mode = "refuse"
        with pytest.raises(urllib.error.HTTPError, match="503"):
            put(proxy.uri, b"refused")
        for mode in ("down", "cut"):
            proxy.mode = mode
            with pytest.raises(OSError):  # noqa: PT011
                put(proxy.uri, b"lost" * 100)
        assert echo.seen == [b"whole"], "what was cut or refused must not reach the server"
        proxy.mode = "slow"
        assert put(proxy.uri, b"late") == b"late"
        assert proxy.struck == 4


@pytest.mark.slow
def test_a_run_that_is_broken_seven_ways_ends_as_if_nothing_had_happened(tmp_path):
    """The longer one is `make chaos`; a failure here is played again by the same words."""
    table = tmp_path / "table.md"
    words = ["--faults", "7", "--per-run", "7", "--seed", "1", "--storage", "folder"]
    words += ["--patience", "2400"]
    for kind in ("rank", "driver", "MLflow", "newest"):
        words += ["--only", kind]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.chaos",
            *words,
            "--table",
            table,
            "--folder",
            tmp_path / "w",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=5400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 of 7 faults struck" in table.read_text()
    assert "**7 recovered, 7 in runs that ended equal**" in table.read_text()
