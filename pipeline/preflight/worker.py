"""What a worker looks at, in a group of Ray Train's, and tells the driver: facts, no verdicts."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import resource
import shutil
import socket
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import gan
import pipeline
from gan.config import ConfigError
from gan.game import Game
from gan.sampling import to_uint8
from gan.world import World
from pipeline.dataset import open_shards
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.extractors import absolute_name, absolute_weights, configured_extractor
from pipeline.probe import pace_of
from pipeline.shard_cache import cache_folder
from pipeline.storage import StorageError, open_storage

PACKAGES = ("torch", "ray", "mlflow", "numpy", "pyarrow")
RANK = "rank-"  # how the name of a rank's own file begins
SHARED = "shared"  # a file that every worker wants to make
MIN_EXCHANGED_BYTES = 2**22  # less measures the latency of the link, not its width
MAX_EXCHANGED_BYTES = 2**28
EXCHANGES = 5
JUDGED = 128
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def job_of(experiment: Experiment, shards: str, storage: str, mark: str) -> dict[str, Any]:
    """What a worker is told; names in it hold in any folder."""
    evaluate = experiment.evaluate
    told = dataclasses.replace(
        evaluate,
        extractor=absolute_name(evaluate.extractor),
        weights=absolute_weights(evaluate.weights),
    )
    settings = dataclasses.replace(experiment, evaluate=told, search=None).to_dict()
    return {"experiment": settings, "shards": shards, "storage": storage, "mark": mark}


def software() -> dict[str, str]:
    """The versions that must be the same everywhere, and a digest of Forger's own code."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    code = hashlib.sha256()
    for top in (gan, pipeline):
        for path in sorted(Path(str(top.__file__)).parent.rglob("*.py")):
            code.update(path.read_bytes())
    return found | {"forger": code.hexdigest()[:12]}


def look(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The facts of every rank, in their order. Every rank of the group must call this.

    What one rank alone cannot do is told as its fact, so that no other waits for it for ever.
    """
    experiment, world = experiment_from_dict(job["experiment"]), World.current()
    torch.set_num_threads(experiment.cluster.cpus_per_worker)
    device = "cuda" if _backend() == "nccl" else "cpu"
    facts: dict[str, Any] = {
        "rank": world.rank,
        "host": socket.gethostname(),
        "software": software(),
        "cache_free_bytes": _free_bytes(cache_folder("shards")),
    }
    facts |= _published(job, world)
    facts |= _read(job, experiment)
    all_well = world.sum_number(float("data_error" in facts)) == 0
    if all_well:
        facts |= _played(job, experiment, device=device)
    gathered: list[Any] = [None] * world.size
    if world.size > 1:
        dist.all_gather_object(gathered, facts)
    else:
        gathered[0] = facts
    return gathered


def _backend() -> str:
    return dist.get_backend() if dist.is_initialized() else ""


def _published(job: dict[str, Any], world: World) -> dict[str, Any]:
    """A file of this rank's own, and one that all ranks want to make at once."""
    storage, own = open_storage(job["storage"]), f"{job['mark']}/{RANK}{world.rank}"
    try:
        written = storage.create(own, own.encode()) and storage.read(own) == own.encode()
        won = storage.create(f"{job['mark']}/{SHARED}", own.encode())
    except (StorageError, FileNotFoundError) as error:
        return {"storage_error": str(error)}
    return {"storage_own": own, "storage_written": written, "storage_won": won}


def _read(job: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    try:
        shards = open_shards(job["shards"])
        configured_extractor(experiment.evaluate, shards.sample.shape)
    except (ConfigError, StorageError) as error:
        return {"data_error": str(error)}
    return {"data_digest": shards.digest}


def _played(job: dict[str, Any], experiment: Experiment, *, device: str) -> dict[str, Any]:
    """Real rounds at the full batch: their pace, what they needed, what their exchange costs."""
    shards = open_shards(job["shards"])
    pace = pace_of(experiment, shards, device=device)
    game, turns = pace.game, experiment.turns
    sizes = {name: _bytes(getattr(game, name)) for name in ("D", "G")}
    exchanged = game.d_steps * sizes["D"] + turns.g_steps * sizes["G"]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "img_per_sec": pace.img_per_sec,
        "scalars": pace.scalars,
        "round_sec": game.d_steps * turns.batch_size / pace.img_per_sec,
        "round_bytes": exchanged,
        "bytes_per_sec": _exchange(sizes["D"], game.world, device=device),
        "judged_per_sec": _judged_per_sec(experiment, game, shards.sample.shape),
        **_memory(device),
    }


def _bytes(player: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in player.parameters())


def _exchange(num_bytes: int, world: World, *, device: str) -> float | None:
    """Bytes a second that an all-reduce brings to each worker and takes from it, as a ring would
    send them; None for a worker alone.
    """
    if world.size == 1:
        return None
    size = min(max(num_bytes, MIN_EXCHANGED_BYTES), MAX_EXCHANGED_BYTES)
    values = torch.zeros(size // 4, device=device)
    dist.all_reduce(values)
    values.sum().item()  # waits for the device
    started = time.perf_counter()
    for _ in range(EXCHANGES):
        dist.all_reduce(values)
    values.sum().item()
    each = (time.perf_counter() - started) / EXCHANGES
    return size * 2 * (world.size - 1) / world.size / each


def _judged_per_sec(experiment: Experiment, game: Game, shape: tuple[int, ...]) -> float:
    """Images that one worker draws and judges in a second."""
    extractor = configured_extractor(experiment.evaluate, shape)
    extractor.module.to(game.device)
    first = next(game.G_ema.parameters())
    z = torch.zeros(JUDGED, experiment.generator.latent_dim).to(first)
    labels = None
    if experiment.conditioning.name != "none":
        labels = torch.zeros(JUDGED, dtype=torch.int64, device=first.device)

    def judged() -> float:
        started = time.perf_counter()
        with torch.no_grad():
            extractor(to_uint8(game.G_ema(z, labels))).sum().item()
        return time.perf_counter() - started

    judged()
    return JUDGED / judged()


def _memory(device: str) -> dict[str, int]:
    """The most that was used so far, and what there is of it."""
    if device == "cuda":
        _, total = torch.cuda.mem_get_info()
        return {"peak_bytes": torch.cuda.max_memory_reserved(), "memory_bytes": total}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in MEMORY_LIMITS:  # of a container
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return {"peak_bytes": peak, "memory_bytes": total}


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free
