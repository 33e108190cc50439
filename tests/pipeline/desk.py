"""What tests of runs share: a folder to type commands in, and a small run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.backend import Backend, backend
from pipeline.dataset import ShardSet
from pipeline.experiment_file import experiment_from_dict
from pipeline.folder import Folder
from pipeline.play import play
from pipeline.registry import register
from pipeline.run import Best, Run
from pipeline.shards import write_shards
from pipeline.tracking import open_tracker
from tests.conftest import striped_images
from tests.pipeline.servers import DEADLINE_SEC

ROOT = Path(__file__).parents[2]
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


def clean_environment() -> dict[str, str]:
    """The environment without what would lead to somebody's Ray or MLflow."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}


def _hear_ctrl_c() -> None:
    """As in a terminal; whoever started the tests may have had it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=self.folder,
            env=clean_environment() | {"PYTHONPATH": str(ROOT)} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )

    def run(self, *words: str, code: int = 0, **env: str) -> str:
        process = self.start(*words, **env)
        output, _ = process.communicate(timeout=DEADLINE_SEC)
        assert process.returncode == code, output
        return output

    @property
    def tracking(self) -> str:
        """The address of the desk's own MLflow."""
        return f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}"

    def open_run(self, name: str = "stripes") -> Run:
        return Run.at(Folder(self.folder / "runs" / name))

    def wait_for_ticks(self, count: int, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + DEADLINE_SEC
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            # Counted without parsing: the whole run takes seconds, and a busy machine gives few.
            journal = self.folder / "runs" / "stripes" / "journal"
            if sum(file.read_text().count("\n") for file in journal.glob("*.jsonl")) >= count:
                return
            time.sleep(0.01)
        raise AssertionError("the run did not get that far")


def small_run(storage: Path, stripes: ShardSet) -> Run:
    """A finished run of a second or two, in this process, of 8 px images in two classes."""
    values = {
        "name": "small",
        "data": {"shards": stripes.uri},
        "generator": {"width": 8, "latent_dim": 4, "lr": 1e-3},
        "discriminator": {"width": 8, "lr": 1e-3},
        "conditioning": {"name": "projection"},
        "turns": {"total_kimg": 0.064, "batch_size": 16},
        "evaluate": {"images": 50},
        "cluster": {"storage": str(storage)},
    }
    run = Run.open("small", experiment_from_dict(values), stripes)
    assert play(run, stripes).finished
    return run


def best_of(run: Run) -> Best:
    best = run.best()
    assert best is not None
    return best


def negative_checkout(folder: Path) -> Path:
    """A checkout in which somebody made dcgan draw every image as its own negative."""
    for package in ("gan", "pipeline"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__*__"))
        (folder / package / "__init__.py").touch()
    (folder / "gan/networks/__init__.py").write_text(
        (ROOT / "gan/networks/__init__.py").read_text()
    )
    dcgan = folder / "gan/networks/dcgan.py"
    changed = dcgan.read_text().replace(
        "return self.to_image(x).tanh()", "return -self.to_image(x).tanh()"
    )
    assert changed != dcgan.read_text()
    dcgan.write_text(changed)
    return folder


def blobs(count: int):
    """Bright blobs anywhere, under noise; the label says in which half."""
    rng = np.random.RandomState(0)
    rows, columns = np.mgrid[:8, :8]
    for _ in range(count):
        y, x, width = rng.uniform(1, 7), rng.uniform(1, 7), rng.uniform(1, 3)
        light = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width)
        noisy = 200 * light + rng.normal(0, 25, light.shape)
        yield noisy.clip(0, 255).astype(np.uint8)[..., None], int(x > 4)


def trained(
    name: str, storage: Path, shards: ShardSet, *, kimg: float, where: Backend | None = None
) -> Run:
    """A finished run, registered as a candidate of the model `blobs`."""
    values = {
        "name": name,
        "data": {"shards": shards.uri},
        "generator": {"width": 8, "latent_dim": 8, "lr": 2e-3},
        "discriminator": {"width": 8, "lr": 2e-3},
        "conditioning": {"name": "projection"},
        "objective": {"penalty_interval": 4},
        "turns": {"total_kimg": kimg, "batch_size": 32},
        "evaluate": {"images": 500, "every_kimg": kimg},
        "ema": {"half_life_kimg": 0.5},
        "tracking": {"model": "blobs"},
        "cluster": {"storage": str(storage)},
    }
    run = Run.open(name, experiment_from_dict(values), shards)
    threads = torch.get_num_threads()
    torch.set_num_threads(run.experiment.cluster.cpus_per_worker)  # as a worker does
    try:
        assert play(run, shards).finished
    finally:
        torch.set_num_threads(threads)
    where = where or backend(str(storage))
    register(where, run, best_of(run), mlflow_run_id=open_tracker(where, run).run_id)
    return run
