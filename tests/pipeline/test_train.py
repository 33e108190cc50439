"""The main job for real: Ray workers, MLflow, Ctrl-C, killed processes; each through the command
line.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline.checkpoint import latest_checkpoint
from pipeline.run import Run
from pipeline.shards import write_shards
from pipeline.storage import Folder
from tests.conftest import striped_images

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEADLINE_SEC = 400
EXPERIMENT = """
name = "stripes"
[data]
shards = "data"
[generator]
width = 8
latent_dim = 8
lr = 1e-3
[discriminator]
width = 8
lr = 1e-3
[conditioning]
name = "projection"
[objective]
penalty_interval = 4
[turns]
total_kimg = 4
batch_size = 16
[tracking]
tick_kimg = 0.125
[evaluate]
images = 200
[cluster]
workers = 2
"""


class Desk:
    """A folder in which somebody types forger commands."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "stripes.toml").write_text(EXPERIMENT)
        write_shards(
            str(folder / "data"),
            striped_images(200, size=16),
            classes=("left", "right"),
            origin={},
        )

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=self.folder,
            env=inherited | {"PYTHONPATH": str(ROOT)} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, code: int = 0, **env: str) -> str:
        process = self.start(*words, **env)
        output, _ = process.communicate(timeout=DEADLINE_SEC)
        assert process.returncode == code, output
        return output

    def open_run(self, name: str = "stripes") -> Run:
        return Run.at(Folder(self.folder / "runs" / name))

    def wait_for_ticks(self, count: int, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + DEADLINE_SEC
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            journal = self.folder / "runs" / "stripes" / "journal"
            if journal.is_dir() and len(list(self.open_run().journal())) >= count:
                return
            time.sleep(0.05)
        raise AssertionError("the run did not get that far")


def weights(run: Run) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(run.storage)
    assert found is not None
    assert found.nimg == 4000
    return found.state


def assert_same_end(run: Run, undisturbed: Run) -> None:
    """Bit-identical weights, and curves without gaps, doubles or other values."""
    a, b = weights(run), weights(undisturbed)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []

    def curve(r: Run) -> list:
        return [
            (line.nimg, {k: v for k, v in line.metrics.items() if not k.startswith("speed/")})
            for line in r.journal()
        ]

    assert curve(run) == curve(undisturbed)


def assert_tracked_once(desk: Desk, name: str, uri: str | None = None) -> None:
    """MLflow holds one run of this name, whose every metric equals the journal, point by point."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri or f"sqlite:///{desk.folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("stripes")
    assert experiment is not None
    found = [
        run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name
    ]
    assert len(found) == 1
    tracked, run = found[0], desk.open_run(name)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["generator.lr"] == "0.001"
    assert tracked.data.params["turns.d_steps"] == "1"
    assert tracked.data.tags["forger.data_digest"] == run.data_digest
    for metric in ("d/loss", "g/loss", "game/value", "score/fd_pixels_200"):
        expected = [(ln.nimg, ln.metrics[metric]) for ln in run.journal() if metric in ln.metrics]
        points = client.get_metric_history(tracked.info.run_id, metric)
        assert sorted((p.step, p.value) for p in points) == expected, metric
    judged = [line.nimg for line in run.journal() if line.picture]
    pictures = [Path(f.path).name for f in client.list_artifacts(tracked.info.run_id, "images")]
    steps = sorted(
        int(p.split("%" if "%" in p else "+")[2]) for p in pictures if p.endswith(".png")
    )
    assert steps == judged
    names = {f.path for f in client.list_artifacts(tracked.info.run_id)}
    assert {"experiment.toml", "lineage.json"} <= names


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Desk:
    """A desk with the undisturbed run on it, complete."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    desk.output = desk.run("train", "stripes.toml")  # type: ignore[attr-defined]
    return desk


def test_the_main_job_ends_with_a_tracked_run_and_a_registered_champion(desk):
    assert "complete at 4.0 kimg" in desk.output
    assert "models:/stripes/1 (champion)" in desk.output
    assert_tracked_once(desk, "stripes")
    leftovers = {p.name for p in (desk.folder / "runs" / "stripes").iterdir()}
    assert leftovers == {
        "run.json",
        "lock",
        "result.json",
        "shipped.json",
        "journal",
        "checkpoints",
        "snapshots",
    }


def test_the_champion_loads_as_a_pyfunc_and_draws_the_bytes_that_sample_draws(desk):
    import mlflow
    import pandas as pd

    desk.run(
        "sample",
        "models:/stripes@champion",
        "-n",
        "3",
        "--seed",
        "5",
        "--label",
        "1",
        "-o",
        "three.png",
    )
    with Image.open(desk.folder / "three.png") as picture:
        drawn = np.asarray(picture)
    mlflow.set_tracking_uri(f"sqlite:///{desk.folder / 'runs' / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/stripes@champion")
    rows = pd.DataFrame({"seed": [5, 6, 7], "label": [1, 1, 1], "truncation": [1.0, 1.0, 1.0]})
    images = model.predict(rows)
    assert images.shape == (3, 16, 16, 1)
    assert images.dtype == np.uint8
    enlarged = images[0].repeat(3, 0).repeat(3, 1)[..., 0]
    np.testing.assert_array_equal(drawn[1:49, 1:49], enlarged)
    without = model.predict(pd.DataFrame({"seed": [5]}))
    assert without.shape == (1, 16, 16, 1)


def test_the_registered_version_names_its_lineage_and_holds_no_pickled_weights(desk):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{desk.folder / 'runs' / 'mlflow.db'}")
    version = client.get_model_version_by_alias("stripes", "champion")
    run = desk.open_run()
    assert version.tags["forger.data_digest"] == run.data_digest
    assert version.tags["forger.run_id"] == run.id
    assert "torch" in json.loads(version.tags["forger.packages"])
    files = [p for p in (desk.folder / "runs" / "mlartifacts").rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".pkl", ".pt", ".pth", ".pickle")]
    bundled = next(p for p in files if p.name == "generator.safetensors")
    assert safetensors.torch.load_file(bundled)


def test_evaluate_judges_the_champion_as_training_did(desk):
    output = desk.run("evaluate", "models:/stripes@champion", "--json")
    score = json.loads(output[output.index("{") :])
    best = desk.open_run().best()
    assert best is not None
    # not to the last bit: the command may use more threads than a worker, and sums round otherwise
    assert score["metrics"]["score/fd_pixels_200"] == pytest.approx(
        best.card.score("fd"), rel=1e-5
    )
    assert score["protocol"]["num_reference"] == 200


def test_a_complete_run_is_not_trained_again_and_again_begins_another(desk):
    first = desk.open_run()
    assert "complete at 4.0 kimg" in desk.run("train", "stripes.toml")
    output = desk.run("train", "stripes.toml", "--again")
    assert "the same weights as before" in output
    assert_same_end(desk.open_run("stripes-2"), first)
    assert_tracked_once(desk, "stripes-2")


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(desk, tmp_path):
    here = Desk(tmp_path)
    process = here.start("train", "stripes.toml")
    here.wait_for_ticks(6, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, output
    assert "to go on: forger train stripes.toml" in output
    stopped = latest_checkpoint(here.open_run().storage)
    assert stopped is not None
    assert 0 < stopped.nimg < 4000
    assert stopped.nimg == max(line.nimg for line in here.open_run().journal())
    assert "resuming at" in here.run("train", "stripes.toml")
    assert_same_end(here.open_run(), desk.open_run())
    assert_tracked_once(here, "stripes")


def test_a_killed_driver_loses_nothing(desk, tmp_path):
    here = Desk(tmp_path)
    process = here.start("train", "stripes.toml")
    here.wait_for_ticks(9, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=60)  # Ray's processes end when they miss their driver
    assert "resuming at" in here.run("train", "stripes.toml")
    assert_same_end(here.open_run(), desk.open_run())
    assert_tracked_once(here, "stripes")


def test_a_killed_worker_is_replaced_and_loses_nothing(desk, tmp_path):
    here = Desk(tmp_path)
    process = here.start("train", "stripes.toml")
    here.wait_for_ticks(9, process)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].kill()
    output, _ = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, output
    assert_same_end(here.open_run(), desk.open_run())
    assert_tracked_once(here, "stripes")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_real_mlflow_server_tracks_the_same_as_the_local_file(desk, tmp_path):
    here, port = Desk(tmp_path), free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    env = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + DEADLINE_SEC
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        output = here.run("train", "stripes.toml", MLFLOW_TRACKING_URI=uri)
        assert f"{uri}/#/experiments/" in output
        assert_tracked_once(here, "stripes", uri)
        here.run("sample", "models:/stripes@champion", "-o", "grid.png", MLFLOW_TRACKING_URI=uri)
        assert_same_end(here.open_run(), desk.open_run())
        assert not (here.folder / "runs" / "mlflow.db").exists()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (
            {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
            "MLFLOW_TRACKING_URI = 'http://127.0.0.1:9'",
        ),
        ({"RAY_ADDRESS": "127.0.0.1:9"}, "RAY_ADDRESS = '127.0.0.1:9' does not answer"),
        ({"RAY_ADDRESS": "ray://127.0.0.1:10001"}, "RAY_ADDRESS must be host:port"),
    ],
)
def test_addresses_that_do_not_answer_are_named_at_once_and_nothing_is_written(
    tmp_path, env, words
):
    here = Desk(tmp_path)
    output = here.run("train", "stripes.toml", code=2, **env)
    assert words in output
    assert "Traceback" not in output
    assert not (tmp_path / "runs" / "stripes").exists()
