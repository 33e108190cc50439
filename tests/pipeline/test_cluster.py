"""The connection to Ray: what it leaves behind is nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from pipeline import cluster
from pipeline.experiment import ClusterConfig


@pytest.fixture
def far_cluster(monkeypatch):
    """A cluster elsewhere, as far as `connected` sees."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    for name in ("init", "shutdown"):
        monkeypatch.setattr(cluster.ray, name, lambda **_: None)
    monkeypatch.setattr(cluster.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(cluster, "GOODBYE_SEC", 0.5)


def test_a_controller_that_outlives_its_actor_ends_with_the_connection(far_cluster, monkeypatch):
    code = "import time; time.sleep(600)"
    lingering = subprocess.Popen([sys.executable, "-c", code, cluster.CONTROLLER])

    def told(class_name: str, *, state: str | None = "ALIVE") -> list[dict[str, Any]]:
        assert class_name == cluster.CONTROLLER
        dead = {"Address": {"IPAddress": "127.0.0.1"}, "Pid": lingering.pid}
        return [dead] if state is None else []

    monkeypatch.setattr(cluster, "actors", told)
    monkeypatch.setattr(cluster, "_controllers", cluster._told_controllers)  # however slowly
    with cluster.connected(ClusterConfig()):
        assert lingering.poll() is None
    assert lingering.wait(60) == -signal.SIGKILL


def test_the_connection_ends_though_the_head_does_not_answer_any_more(far_cluster, monkeypatch):
    answered, told = threading.Event(), []

    def asked(class_name: str, **_: Any) -> list[dict[str, Any]]:
        answered.wait(600)
        told.append(class_name)
        return []

    monkeypatch.setattr(cluster, "actors", asked)
    with cluster.connected(ClusterConfig()):
        pass
    assert not told  # it has not been waited for
    answered.set()
