"""What the runs stand on: data, an MLflow server, S3, a Ray of two nodes; each can be broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from pipeline.backend import Backend
from pipeline.shards import write_shards
from tests.chaos.game import ROOT, clean_environment, stripes
from tests.chaos.processes import title
from tests.chaos.proxy import Proxy
from tests.pipeline.servers import make_bucket, mlflow_server, s3

BUCKET = "chaos"
OBJECT_STORE_BYTES = 100 * 2**20
TIGHT_MIB = 48  # of the small disk that faults fill
HEALTH_SEC = 20
RAY_SETTINGS = {
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "false",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "false",
    # On nodes of one machine a lost one is known within seconds.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
}


class Stand:
    """Servers that outlive the runs, started when they are first asked for; ends with the block.

    `storage` is "s3" or "folder": where the runs live.
    """

    def __init__(self, folder: Path, *, storage: str = "s3"):
        self.folder, self.storage = folder, storage
        self._ends = ExitStack()
        self._mlflow = ExitStack()
        self._restarting: threading.Thread | None = None
        self._nodes: Nodes | None = None

    def __enter__(self) -> Stand:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_shards(
            str(self.folder / "data"), stripes(200),
            classes=("left", "right"), origin={},
        )  # fmt: skip
        # Short, because Ray's sockets live below it and their names must fit in 107 bytes.
        self.ray_folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self._ends.callback(shutil.rmtree, self.ray_folder, ignore_errors=True)
        self._ends.callback(self.kill_mlflow)
        self.start_mlflow()
        self.mlflow = self._ends.enter_context(Proxy(self._mlflow_uri, status=500))
        self.s3: Proxy | None = None
        self.keys: dict[str, str] = {}
        if self.storage == "s3":
            self.keys = self._ends.enter_context(s3())
            make_bucket(self.keys, BUCKET)
            self.s3 = self._ends.enter_context(Proxy(self.keys["AWS_ENDPOINT_URL"]))
            # What this process itself looks at, it looks at past the proxy.
            os.environ.update(self.keys)
        return self

    def __exit__(self, *_: object) -> None:
        if self._nodes is not None:
            self._nodes.shutdown()
        self._ends.close()

    def start_mlflow(self) -> None:
        """A new server over what the last one kept."""
        folder = self.folder / "mlflow"
        folder.mkdir(exist_ok=True)
        self._mlflow_uri = self._mlflow.enter_context(
            mlflow_server(f"sqlite:///{folder / 'server.db'}", str(folder / "artifacts"), folder)
        )
        if hasattr(self, "mlflow"):
            self.mlflow.upstream = self._mlflow_uri

    def restart_mlflow(self) -> None:
        """The same, without waiting for it."""
        self._restarting = threading.Thread(target=self.start_mlflow)
        self._restarting.start()

    def settle(self) -> None:
        """Returns once no server is between two lives."""
        if self._restarting is not None:
            self._restarting.join()

    def kill_mlflow(self) -> None:
        """SIGKILL to the server and its workers."""
        self.settle()  # a second blow while it starts
        self._mlflow.close()

    def heal(self) -> None:
        """As if nothing had been broken: for the next run."""
        self.settle()
        self.mlflow.mode = "pass"
        if self.s3 is not None:
            self.s3.mode = "pass"
        self.nan_file.unlink(missing_ok=True)
        if self._nodes is not None:
            self._nodes.restore()
        # Without it all that follows would be blamed on those that are tested.
        urllib.request.urlopen(f"{self._mlflow_uri}/health", timeout=HEALTH_SEC).close()

    @property
    def tracking(self) -> Backend:
        """MLflow itself, past the proxy."""
        return Backend(self._mlflow_uri, None)

    @property
    def nodes(self) -> Nodes:
        """A Ray of a head without CPUs and two nodes of one CPU."""
        if self._nodes is None:
            self._nodes = Nodes(self.environment())
        return self._nodes

    @property
    def pids(self) -> set[int]:
        """Every process of the stand's own servers."""
        found: set[int] = set()
        for top in psutil.Process().children():
            words = title(top)
            if "mlflow server" in words or "ceph" in words or "radosgw" in words:
                found |= {top.pid, *(p.pid for p in top.children(recursive=True))}
        if self._nodes is not None:
            found |= self._nodes.pids
        return found

    @property
    def nan_file(self) -> Path:
        """The file whose appearance plants a NaN."""
        return self.folder / "nan"

    @property
    def small_disk(self) -> Path:
        """Where it is mounted. Raises CannotBreak where it cannot be."""
        disk = self.folder / "tight"
        if not os.path.ismount(disk):
            mount_small_disk(disk)
            self._ends.callback(unmount, disk)
        return disk

    def runs(self, stage: str) -> str:
        """The storage that the runs of a stage live below."""
        if stage == "tight":
            return str(self.small_disk / "runs")
        return f"s3://{BUCKET}/runs" if self.storage == "s3" else str(self.folder / "runs")

    def environment(self) -> dict[str, str]:
        """What a command is started with."""
        keys = self.keys | ({"AWS_ENDPOINT_URL": self.s3.uri} if self.s3 else {})
        return (
            clean_environment()
            | keys
            | RAY_SETTINGS
            | {
                "CHAOS_NAN_FILE": str(self.nan_file),
                "MLFLOW_TRACKING_URI": self.mlflow.uri,
                "RAY_TMPDIR": str(self.ray_folder),
                "PYTHONPATH": f"{ROOT / 'tests/chaos/plant'}:{ROOT}",
            }
        )

    def dangling_uploads(self) -> list[str]:
        """Multipart uploads that somebody began and nobody ended."""
        if self.storage != "s3":
            return []
        import boto3

        told = boto3.Session().client("s3").list_multipart_uploads(Bucket=BUCKET)
        return [upload["Key"] for upload in told.get("Uploads", [])]


class CannotBreak(Exception):
    """A fault that this machine does not let us inject, with the reason."""


def mount_small_disk(folder: Path) -> None:
    """A disk of its own of TIGHT_MIB, in memory. Raises CannotBreak where we may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={TIGHT_MIB}m", "chaos", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise CannotBreak(f"no small disk can be mounted here: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    """Ends a small disk, whoever still looks at it."""
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Nodes:
    """Three raylets on this machine: the head, without CPUs, and two of one CPU."""

    def __init__(self, environment: dict[str, str]):
        # Ray reads its settings from the environment of whoever starts it.
        os.environ.update({k: v for k, v in environment.items() if k.startswith("RAY_")})
        os.environ["PYTHONPATH"] = environment["PYTHONPATH"]
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            },
        )
        self.workers: list[Any] = [self._added() for _ in range(2)]

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        address = self._cluster.address
        assert address is not None
        return address

    @property
    def raylets(self) -> list[int]:
        """The processes of the two nodes' raylets."""
        return [node.all_processes["raylet"][0].process.pid for node in self.workers]

    def _added(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)

    @property
    def pids(self) -> set[int]:
        """The nodes' own processes, without the workers of runs."""
        found: set[int] = set()
        for node in self._cluster.list_all_nodes():
            for infos in node.all_processes.values():
                found |= {info.process.pid for info in infos}
        tops = [psutil.Process(pid) for pid in found if psutil.pid_exists(pid)]
        side = [p for top in tops for p in top.children(recursive=True)]
        # The coordinator is the cluster's own: the first run begins it, for all that follow.
        agents = ("Agent", "ray::IDLE", "log_monitor", "monitor.py", "dashboard",
                  "_AutoscalingCoordinator")  # fmt: skip
        return found | {p.pid for p in side if any(word in title(p) for word in agents)}

    def kill(self, which: int) -> None:
        """SIGKILL to a node's raylet; its workers end with it."""
        node = self.workers.pop(which)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, which: int, *, within_sec: float) -> None:
        """Tells Ray that a node will be taken in so many seconds, as a spot market does."""
        from ray import _raylet
        from ray.core.generated import autoscaler_pb2

        client: Any = getattr(_raylet, "GcsClient")(address=self.address)  # noqa: B009
        reasons: Any = getattr(autoscaler_pb2, "DrainNodeReason")  # noqa: B009
        told = client.drain_node(
            self.workers[which].node_id,
            reasons.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "the chaos suite takes this node",
            int((time.time() + within_sec) * 1000),
        )
        assert told[0], f"Ray refused to drain a node: {told[1]}"

    def restore(self) -> None:
        """Two nodes again."""
        while len(self.workers) < 2:
            self.workers.append(self._added())

    def shutdown(self) -> None:
        """Ends all of it."""
        self._cluster.shutdown()
