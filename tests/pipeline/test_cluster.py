"""The connection to Ray: what it leaves behind is nothing."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil

from pipeline import cluster
from pipeline.experiment import ClusterConfig


def test_a_controller_that_outlives_its_actor_ends_with_the_connection(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    for name in ("init", "shutdown"):
        monkeypatch.setattr(cluster.ray, name, lambda **_: None)
    monkeypatch.setattr(cluster, "GOODBYE_SEC", 0.1)
    lingering = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(cluster, "_controllers", lambda: [psutil.Process(lingering.pid)])
    with cluster.connected(ClusterConfig()):
        assert lingering.poll() is None
    assert lingering.wait(10) == -signal.SIGKILL
