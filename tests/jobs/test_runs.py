"""What a person sees of runs that stand: forger runs, forger resume, and forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gan.config import ConfigError
from pipeline.branch import fork_of
from pipeline.dataset import open_shards
from pipeline.events import Events
from pipeline.lease import take
from pipeline.run import Run
from tests.chaos.proxy import Proxy
from tests.pipeline.desk import ROOT, Desk, small_run
from tests.pipeline.servers import DEADLINE_SEC, mlflow_server


def state(desk: Desk, name: str = "stripes") -> str:
    """What `forger runs` says of one."""
    (line,) = [line for line in desk.run("runs").splitlines() if line.startswith(f"{name} ")]
    return line


@pytest.mark.slow
def test_a_run_whose_mlflow_goes_away_is_trained_to_its_end_and_delivered_later(tmp_path):
    desk = Desk(tmp_path)
    store = f"sqlite:///{tmp_path / 'server.db'}"
    assert "there is no run" in desk.run("runs")
    with (
        mlflow_server(store, str(tmp_path / "artifacts"), tmp_path) as upstream,
        Proxy(upstream) as proxy,
    ):
        env = {"MLFLOW_TRACKING_URI": proxy.uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        process = desk.start("train", "stripes.toml", "turns.total_kimg=0.5", **env)
        desk.wait_for_ticks(1, process)
        proxy.mode = "down"
        assert "  running " in state(desk)
        output, _ = process.communicate(timeout=DEADLINE_SEC)
        assert process.returncode == 0, output
        assert "MLflow takes nothing (" in output
        assert "MLflow did not take it; forger resume stripes delivers it" in output
        assert "Traceback" not in output
        assert "goodput " in output
        assert desk.open_run().result["delivered"] is False  # type: ignore[index]
        line = state(desk)
        assert "  undelivered  0.5 of 0.5 " in line
        assert line.endswith("forger resume stripes")
        proxy.mode = "pass"
        output = desk.run("resume", "stripes", MLFLOW_TRACKING_URI=proxy.uri)
        assert "registered as candidate models:/stripes-candidates/1" in output
        line = state(desk)
        assert "  complete " in line
        assert line.endswith("forger promote stripes")
        client = desk_client(upstream)
        experiment = client.get_experiment_by_name("stripes")
        assert experiment is not None
        (tracked,) = client.search_runs([experiment.experiment_id])
        assert tracked.info.status == "FINISHED"
        points = client.get_metric_history(tracked.info.run_id, "d/loss")
        ticks = list(desk.open_run().journal())
        assert [p.step for p in points] == [line.nimg for line in ticks]
        assert 0 < tracked.data.metrics["goodput/share"] < 1
        assert "best/fd_pixels_200" in tracked.data.metrics


def desk_client(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def test_states_of_runs_are_those_of_their_writers(tmp_path, stripes):
    desk = Desk(tmp_path)
    run = small_run(tmp_path / "runs", stripes)
    assert "  stopped " in state(desk, "small")
    with take(run.storage, who="a test", note={"journalled": run.journalled_nimg}):
        assert "  running " in state(desk, "small")
    dies = (
        "import os; from pipeline.lease import take; from pipeline.storage import open_storage\n"
    )
    dies += (
        f"with take(open_storage({run.storage.uri!r}), who='a test', note={{'journalled': 64}}):"
    )
    subprocess.run([sys.executable, "-c", f"{dies} os._exit(9)"], cwd=ROOT, check=False)
    assert "  crashed " in state(desk, "small")
    Events(run.storage, 1).add("failed", why="NaN", diverged=1)
    assert "  diverged " in state(desk, "small")
    (tmp_path / "runs" / "odd").mkdir()
    (tmp_path / "runs" / "odd" / "run.json").write_text("{}")
    assert "  unreadable " in state(desk, "odd")
    assert "there is no run in" in desk.run("resume", "nothing", code=2)


def test_a_fork_goes_on_from_the_newest_checkpoint_with_other_settings(tmp_path, stripes):
    parent = small_run(tmp_path / "runs", stripes)
    shards = open_shards(stripes.uri)
    changed = parent.experiment.replace("generator.lr", 5e-4).replace("turns.total_kimg", 0.128)
    with pytest.raises(ConfigError, match=r"(?s)generator\.lr was 0\.001 .* add --fork"):
        Run.open("small", changed, shards)
    fork = fork_of("small", "small-fork", changed, shards)
    assert fork.lineage["branched"]["run_id"] == parent.id
    assert fork.journalled_nimg == parent.journalled_nimg == 64
    assert fork.experiment.generator.lr == 5e-4
    assert fork_of("small", "small-fork", changed, shards).id == fork.id  # the same command again
    with pytest.raises(ConfigError, match="another name"):
        fork_of("small", "small", changed, shards)
    other = changed.replace("generator.latent_dim", 16)
    with pytest.raises(ConfigError, match="latent_dim must stay"):
        fork_of("small", "small-other", other, shards)
