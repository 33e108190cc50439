"""A bucket that the machines of a Ray prepare: two raylets, a real store, the same set."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset import open_shards
from pipeline.prepare import prepare
from pipeline.shards import verify_shards
from pipeline.storage import open_storage
from tests.pipeline.desk import ROOT, clean_environment
from tests.pipeline.servers import DEADLINE_SEC

pytestmark = pytest.mark.slow

COUNT, IN_A_SHARD = 120, 10
PREPARE = f"""
import sys, time
from pathlib import Path
import pipeline.units, pipeline.workforce
pipeline.units.UNIT_BYTES = {IN_A_SHARD} * 16 * 16 * 3  # small shards, so that there are many
from pipeline.prepare import prepare
from pipeline.units import do_unit
*places, begun = sys.argv[1:]

def together(job, unit):
    import ray
    Path(begun, ray.get_runtime_context().get_node_id()).touch()
    deadline = time.monotonic() + 300
    while len(list(Path(begun).iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    return do_unit(job, unit)

pipeline.workforce.do_unit = together  # a node that is fast would do all of it alone
seen = []
prepare(*places, progress=lambda *told: seen.append(told))
print(len(seen))
"""


@pytest.fixture
def source(tmp_path) -> Path:
    dice = np.random.RandomState(0)
    for number in range(COUNT):
        folder = tmp_path / "source" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = dice.randint(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return tmp_path / "source"


@pytest.fixture
def two_nodes(s3_uri, monkeypatch) -> Iterator[tuple[str, Path]]:
    """The address of a Ray of a head without CPUs and two nodes of one, and where its logs are.

    This process never joins it, because a process has one Ray for its life.
    """
    from pipeline.cluster import LOCAL_OBJECT_STORE_BYTES  # it sets Ray's environment

    # isort: split
    from ray.cluster_utils import Cluster

    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    quiet = {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=LOCAL_OBJECT_STORE_BYTES)
        assert cluster.head_node is not None
        yield str(cluster.address), Path(str(cluster.head_node.get_logs_dir_path()))
    finally:
        cluster.shutdown()


def test_a_bucket_is_prepared_by_the_machines_of_a_ray(source, tmp_path, s3_uri, two_nodes):
    address, logs = two_nodes
    here = prepare(str(source), str(tmp_path / "here"), processes=1)
    remote = open_storage(f"{s3_uri}/pictures")
    for path in sorted(source.rglob("*.png")):
        remote.write(path.relative_to(source).as_posix(), path.read_bytes())
    begun = tmp_path / "begun"
    begun.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, f"{s3_uri}/pictures", f"{s3_uri}/prepared", str(begun)],
        env=clean_environment() | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SEC,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    there = open_shards(f"{s3_uri}/prepared")
    assert (there.digest, there.num_images) == (here.digest, COUNT)
    assert len(there.shards) == COUNT // IN_A_SHARD
    verify_shards(there)
    assert not [
        name for name in open_storage(f"{s3_uri}/prepared").names() if "unfinished" in name
    ]
    worked = [
        log.name for log in logs.glob("worker-*.out") if re.search(r":task_name:", log.read_text())
    ]
    assert len(worked) == 2, "one process of each node"
