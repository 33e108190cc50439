"""The main job for real: Ray workers, MLflow, Ctrl-C, killed processes; each through the command
line.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.checkpoint import latest_checkpoint
from pipeline.run import Run
from tests.pipeline.desk import Desk
from tests.pipeline.servers import DEADLINE_SEC, mlflow_server

pytestmark = pytest.mark.slow


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
            (
                line.nimg,
                {k: v for k, v in line.metrics.items() if not k.startswith(("speed/", "host/"))},
            )
            for line in r.journal()
        ]

    assert curve(run) == curve(undisturbed)


def assert_tracked_once(desk: Desk, name: str, uri: str | None = None) -> None:
    """MLflow holds one run of this name, whose every metric equals the journal, point by point."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri or desk.tracking)
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


def test_the_main_job_ends_with_a_tracked_run_and_a_registered_candidate(desk):
    assert "complete at 4.0 kimg" in desk.output
    assert "registered as candidate models:/stripes-candidates/1\n" in desk.output
    assert "forger promote stripes" in desk.output
    assert_tracked_once(desk, "stripes")
    leftovers = {p.name for p in (desk.folder / "runs" / "stripes").iterdir()}
    assert leftovers == {
        "run.json",
        "result.json",
        "shipped.json",
        "events",
        "lease",
        "journal",
        "checkpoints",
        "snapshots",
    }


def test_a_run_notes_on_what_it_was_played(desk):
    (stretch,) = desk.open_run().lineage["played"]
    assert stretch["from_nimg"] == 0
    assert stretch["world_size"] == 2
    assert stretch["device"] == "cpu"
    assert stretch["threads"] == 1


def test_a_complete_run_is_not_trained_again_and_again_begins_another(desk):
    first = desk.open_run()
    assert "complete at 4.0 kimg" in desk.run("train", "stripes.toml")
    output = desk.run("train", "stripes.toml", "--again")
    assert "the same generator as before" in output
    assert_same_end(desk.open_run("stripes-2"), first)
    assert_tracked_once(desk, "stripes-2")


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(desk, tmp_path):
    here = Desk(tmp_path)
    process = here.start("train", "stripes.toml")
    here.wait_for_ticks(1, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, output
    assert "to go on: forger train stripes.toml" in output
    stopped = latest_checkpoint(here.open_run().storage)
    assert stopped is not None
    assert 0 < stopped.nimg < 4000
    assert stopped.nimg >= max(line.nimg for line in here.open_run().journal())
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
    folder = here.folder / "runs" / "stripes"
    for name in (".run.json-1.part", "journal/.000-2.part", "checkpoints/000000000001/.g-3.part"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half of it")  # as a writer leaves it that dies in a write
    assert "resuming at" in here.run("train", "stripes.toml")
    assert list(folder.rglob("*.part")) == []
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


def test_a_real_mlflow_server_tracks_the_same_as_the_local_file(desk, tmp_path):
    here, candidate = Desk(tmp_path), "models:/stripes-candidates@candidate"
    store = f"sqlite:///{tmp_path / 'server.db'}"
    with mlflow_server(store, str(tmp_path / "artifacts"), tmp_path) as uri:
        output = here.run("train", "stripes.toml", MLFLOW_TRACKING_URI=uri)
        assert f"{uri}/#/experiments/" in output
        assert_tracked_once(here, "stripes", uri)
        here.run("sample", candidate, "-o", "grid.png", MLFLOW_TRACKING_URI=uri)
        assert_same_end(here.open_run(), desk.open_run())
        assert not (here.folder / "runs" / "mlflow.db").exists()


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
