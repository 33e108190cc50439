"""The command line: what a person reads when something is wrong, and the thin commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jobs.__main__ import VERBS
from pipeline.shards import write_shards
from tests.conftest import striped_images
from tests.pipeline.servers import DEADLINE_SEC

ROOT = Path(__file__).parents[2]
EXPERIMENT = 'name = "tiny"\ndata.shards = "data"\nevaluate.images = 50\n'


@pytest.fixture
def desk(tmp_path, stripes) -> Path:
    """A folder with an experiment file and its data."""
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    write_shards(str(tmp_path / "data"), striped_images(60), classes=("a", "b"), origin={})
    return tmp_path


def forger(folder: Path, *words: str, code: int = 0) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *words],
        cwd=folder,
        env=clean | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SEC,
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert "Traceback" not in output
    return output


def test_help_lists_every_command_and_each_has_its_own(desk):
    output = forger(desk, "--help")
    for verb in VERBS:
        assert verb in output
        assert "Usage: forger" in forger(desk, verb, "--help")
    assert "No such command 'trian'" in forger(desk, "trian", code=2)


def test_a_dry_run_prints_every_setting_with_its_source_and_starts_nothing(desk):
    output = forger(desk, "train", "tiny.toml", "generator.lr=1e-3", "--dry-run")
    assert [line for line in output.splitlines() if line.startswith("lr = ")] == [
        f"{'lr = 0.001':<44}# command line",
        "lr = 0.0002",
    ]
    assert f"{'images = 50':<44}# tiny.toml" in output
    assert "60 images of 1 x 8 x 8" in output
    assert re.search(r"^G: [\d,]+ parameters, [\d.,]+ MFLOP for an image", output, re.MULTILINE)
    assert re.search(r"^D: [\d,]+ parameters, [\d.,]+ MFLOP for an image", output, re.MULTILINE)
    assert sorted(p.name for p in desk.iterdir()) == ["data", "tiny.toml"]


def test_a_dry_run_imports_no_heavy_library(desk):
    command = [sys.executable, "-X", "importtime", "-m", "jobs", "train", "tiny.toml", "--dry-run"]
    done = subprocess.run(
        command,
        cwd=desk,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    imported = {
        line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line
    }
    assert done.returncode == 0
    assert "pydantic" in imported
    assert not imported & {"torch", "ray", "mlflow", "pyarrow", "numpy"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=-1", "turns.batch_size=0"], ["2 mistakes", "seed must be", "batch_size must be"]),
        (
            ["generator.lrr=1"],
            ["error: command line: generator.lrr", "did you mean generator.lr?"],
        ),
        (["turns.batch_size=3", "cluster.workers=4"], ["turns.batch_size must be at least"]),
        (["data.shards=nowhere"], ["there is no prepared data at", "forger prepare"]),
    ],
)
def test_mistakes_in_an_experiment_end_with_code_2_and_a_remedy(desk, words, expected):
    output = forger(desk, "train", "tiny.toml", *words, "--dry-run", code=2)
    for part in expected:
        assert part in output


def test_labels_asked_for_where_there_are_none_are_refused(tmp_path):
    (tmp_path / "tiny.toml").write_text(EXPERIMENT + 'conditioning.name = "projection"\n')
    bare = ((image, -1) for image, _ in striped_images(10))
    write_shards(str(tmp_path / "data"), bare, classes=(), origin={})
    output = forger(tmp_path, "train", "tiny.toml", "--dry-run", code=2)
    assert "conditioning.name must be 'none' where the data has no labels" in output


@pytest.mark.slow
def test_a_damaged_shard_is_named_before_anything_starts(desk):
    (shard,) = (desk / "data").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:-200] + bytes(200))
    output = forger(desk, "train", "tiny.toml", code=2)
    assert shard.name in output
    assert "damaged" in output
    assert not (desk / "runs" / "tiny").exists()


def test_prepare_then_an_odd_request_for_samples(desk):
    folder = desk / "pictures" / "red"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    output = forger(desk, "prepare", "pictures", "prepared")
    assert "1 images of 3 x 8 x 8, 1 classes" in output
    assert "1 images were set aside" in output
    assert "1: not an image" in output
    assert "(red/b.png)" in output
    assert "does not exist" in forger(desk, "prepare", "pictuers", "other", code=2)
    assert "MODEL must be" in forger(desk, "sample", "nothing", code=2)
    assert "must end in .png" in forger(desk, "sample", "nothing", "-o", "grid.jpg", code=2)


@pytest.mark.slow
def test_an_extractor_of_ones_own_is_found_by_the_workers(desk):
    forger(desk, "extractor", "train", "data", "judge", "--epochs", "1")
    (desk / "tiny.toml").write_text(
        EXPERIMENT
        + 'evaluate.extractor = "judge"\nturns = { total_kimg = 0.1, batch_size = 16 }\n'
    )
    assert "fd_judge_50" in forger(desk, "train", "tiny.toml")
    output = forger(desk, "evaluate", "tiny", "--images", "100")
    assert "score/kid_judge_100" in output
    write_shards(str(desk / "wide"), striped_images(9, size=16), classes=("a", "b"), origin={})
    assert "MODEL draws (1, 8, 8)" in forger(desk, "evaluate", "tiny", "--against", "wide", code=2)
