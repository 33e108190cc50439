"""`forger check` as a whole, on real heads, stores and trackers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from pipeline.experiment_file import experiment_toml
from pipeline.preflight.head import admits, check_head
from pipeline.preflight.here import check_storage, new_mark
from pipeline.stack.stack import RAY
from pipeline.storage import open_storage
from tests.pipeline.quick_experiment import small
from tests.pipeline.servers import free_port, process, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, stripes) -> Path:
    """A folder with a prepared set of its own in data/."""
    shutil.copytree(stripes.uri, tmp_path / "data")
    return tmp_path


def forger(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    names = ("RAY_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    clean |= {"PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "jobs", "check", *words]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)


def test_mistakes_of_the_file_end_with_exit_code_2(tmp_path):
    (tmp_path / "bad.toml").write_text('[generator]\nlr = "fast"\nwidht = 8\n')
    done = forger(tmp_path, "bad.toml")
    assert done.returncode == 2
    assert "generator.lr" in done.stderr
    assert "widht" in done.stderr


@pytest.mark.slow
def test_the_command_is_quiet_on_a_good_set_up_and_leaves_nothing(place):
    experiment = small(str(place / "data"), place / "runs")
    (place / "good.toml").write_text(experiment_toml(experiment))
    done = forger(place, "good.toml", "cluster.workers=2", "--price-per-hour", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, _, estimate, verdict = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["good"] * 12, done.stdout
    assert verdict == "good"
    assert "device hours" in estimate
    assert "in an all-reduce of 2 workers" in done.stdout
    left = {path.name for path in (place / "runs").iterdir()}
    assert left <= {"mlflow.db", "mlartifacts"}


@pytest.mark.slow
def test_a_dead_cluster_and_a_broken_database_end_with_exit_code_1(place):
    experiment = small(str(place / "data"), place / "runs")
    (place / "good.toml").write_text(experiment_toml(experiment))
    (place / "mlflow.db").write_text("no database, but in its place")
    address, database = f"127.0.0.1:{free_port()}", f"sqlite:///{place}/mlflow.db"
    done = forger(place, "good.toml", RAY_ADDRESS=address, MLFLOW_TRACKING_URI=database)
    assert done.returncode == 1
    assert re.search(rf"wrong +cluster +.*{address}.* does not answer", done.stdout), done.stdout
    assert re.search(r"wrong +MLflow +.*not a database", done.stdout), done.stdout
    assert done.stdout.endswith("2 wrong\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("AWS_SECRET_ACCESS_KEY", "wrong", "key"), ("bucket", "not-there", "bucket")],
)
def test_a_store_with_a_wrong_key_or_without_the_bucket_is_found(
    s3_uri, monkeypatch, name, value, said
):
    good = check_storage(open_storage(s3_uri), new_mark())
    assert good.state == "good"
    if name == "bucket":
        s3_uri = f"s3://{value}/runs"
    else:
        monkeypatch.setenv(name, value)
    found = check_storage(open_storage(s3_uri), new_mark())
    assert found.state == "wrong"
    assert said in found.found


TOO_SMALL = """
import time
from pipeline.cluster import connected  # before ray: it sets Ray's environment
import ray
from pipeline.experiment import ClusterConfig
from pipeline.preflight.check import resources

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         object_store_memory=100 * 2**20)
for asked in (
    {"workers": 2}, {"workers": 3}, {"workers": 2, "device": "cuda"},
    {"workers": 2, "cpus_per_worker": 2},
):
    print(resources(ClusterConfig(**asked), wait_sec=0)[1])

@ray.remote(num_cpus=1)
class Other:
    def here(self): ...

other = Other.remote()
ray.get(other.here.remote())
while ray.available_resources().get("CPU") != 1:  # it is told by and by
    time.sleep(0.1)
print(resources(ClusterConfig(workers=2), wait_sec=0)[1])
"""


@pytest.mark.slow
def test_a_cluster_that_is_too_small_or_busy_or_without_gpus_is_found(tmp_path):
    clean = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", TOO_SMALL], env=clean, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    fits, many, gpus, wide, busy = done.stdout.splitlines()
    assert re.match(r"good +cluster +room for 2 of 2 to 2 worker\(s\) with CPUs on 1 node", fits)
    assert re.match(r"wrong +cluster .* ask for 3 CPUs, Ray has 2; needed: 3 worker", many)
    assert re.match(r"wrong +cluster .* 2 workers needs as many GPUs, Ray has 0", gpus)
    assert re.match(r"wrong +cluster .* ask for 4 CPUs, Ray has 2; .*remedy: lower", wide)
    assert re.match(r"wrong +cluster +room for 1 of 2 .* remedy: wait for others", busy)


@pytest.fixture
def head_of(tmp_path) -> Iterator[Callable[[str], str]]:
    """Starts a head on loopback, with RAY_AUTH_MODE as asked and the token "the-token"."""
    folder = Path(tempfile.mkdtemp(prefix="head-"))  # short, for Ray's sockets
    with ExitStack() as running:
        running.callback(shutil.rmtree, folder, ignore_errors=True)

        def ended(head: subprocess.Popen) -> None:
            """Its processes are in groups of their own: it ends them itself when it is asked."""
            theirs = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            _, left = psutil.wait_procs(theirs, timeout=20)
            for each in left:
                each.kill()

        def start(mode: str) -> str:
            # Ray takes 10002 to 19999 for its workers, and wants none of its ports among them.
            port, client = (free_port() for _ in range(2))
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
            command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--num-cpus", "0"]
            command += ["--include-dashboard", "false", "--ray-client-server-port", str(client)]
            command += ["--min-worker-port", "0", "--max-worker-port", "0"]
            command += ["--dashboard-agent-listen-port", "0"]
            env = os.environ | RAY | {"RAY_TMPDIR": str(folder)}
            env |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "the-token"}
            log = tmp_path / "head.log"
            head = running.enter_context(process(command, log, env=env))
            wait_until(
                lambda: "Ray runtime started" in log.read_text(),
                "the head", processes=(head,), log=log,
            )  # fmt: skip
            running.callback(ended, head)
            return f"127.0.0.1:{port}"

        yield start


@pytest.mark.slow
def test_a_head_that_refuses_the_token_is_found_at_once(head_of, monkeypatch):
    monkeypatch.setattr("pipeline.preflight.head.ASK_SEC", 120.0)
    address = head_of("token")
    assert admits(address, "the-token") is True
    assert admits(address, "another") is False
    assert admits(f"127.0.0.1:{free_port()}", "the-token") is None
    found = check_head(address, "another", alone=True)
    assert re.search(r"refuses this token; needed: .* RAY_AUTH_TOKEN_PATH", str(found))
    found = check_head(address, "", alone=True)
    assert re.search(r"refuses who has no token; .* RAY_AUTH_MODE=token", str(found))
    found = check_head(address, "the-token", alone=False)
    assert found is not None
    assert found.state == "good"


@pytest.mark.slow
def test_a_head_that_lets_anybody_in_is_found(head_of, monkeypatch):
    monkeypatch.setattr("pipeline.preflight.head.ASK_SEC", 120.0)
    address = head_of("disabled")
    found = check_head(address, "the-token", alone=False)
    assert re.search(
        r"wrong +token .* also lets in who has no token; .* anybody's code", str(found)
    )
    found = check_head(address, "the-token", alone=True)
    assert found is not None
    assert found.state == "good"
