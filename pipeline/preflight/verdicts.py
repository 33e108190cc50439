"""What the facts of workers mean for the run; pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.failures import LESS_MEMORY
from pipeline.preflight.findings import Finding, good, wrong

MAX_MEMORY_SHARE = 0.9
MAX_EXCHANGE_SHARE = 0.5  # of a round, where nothing of it were hidden behind the computing
CACHE_FLOOR = 1.05  # what a disk must have free, as a multiple of what is kept there

Facts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the whole run takes, at the pace that was measured."""

    img_per_sec: float
    seconds: float
    device_hours: float
    price: float | None  # None where no price is known

    def __str__(self) -> str:
        minutes, hours = self.seconds / 60, self.seconds / 3600
        span = f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min"
        cost = f", {self.price:.2f} at the given price" if self.price is not None else ""
        return f"{span}, {self.device_hours:.2g} device hours{cost}"


def same_software(driver: Mapping[str, str], workers: Facts) -> Finding:
    """Whether the driver and every worker run the same versions of what decides the numbers."""
    for facts in workers:
        for name, here in driver.items():
            there = facts["software"].get(name, "none")
            if there != here:
                return wrong(
                    "versions",
                    f"{name} {there} on {facts['host']}, {here} on the driver",
                    needed="the same on the driver and on every worker",
                    remedy="install the same lock file on all (infra/locks), or use one image",
                )
    shown = ", ".join(f"{name} {version}" for name, version in driver.items())
    return good("versions", f"the same on {len(workers)} worker(s): {shown}")


def shared_storage(workers: Facts, seen: Mapping[str, bytes], uri: str) -> Finding:
    """Whether workers can publish, only one of them wins a name, and the driver sees the same.

    `seen` is what the driver read of the workers' files, by name.
    """
    needed = "a place that the driver and every worker write to and see alike"
    for facts in workers:
        if "storage_error" in facts:
            return wrong(
                "shared storage",
                f"worker {facts['rank']} on {facts['host']}: {facts['storage_error']}",
                needed=needed,
                remedy="give workers the same right, or set cluster.storage to s3:// or a shared "
                "folder",
            )
    lost = [f for f in workers if seen.get(f["storage_own"]) != f["storage_own"].encode()]
    if lost or not all(facts["storage_written"] for facts in workers):
        host = (lost or list(workers))[0]["host"]
        return wrong(
            "shared storage",
            f"the driver does not see at {uri} what a worker on {host} wrote there",
            needed=needed,
            remedy="set cluster.storage to s3://bucket/prefix or a folder that all nodes mount",
        )
    winners = [facts["rank"] for facts in workers if facts["storage_won"]]
    if len(winners) != 1:
        return wrong(
            "shared storage",
            f"{len(winners)} of {len(workers)} workers that made the same file at once were told "
            f"that it is theirs",
            needed="exactly one",
            remedy="use a store that honours If-None-Match, or one folder on one file system",
        )
    return good("shared storage", f"{len(workers)} worker(s) publish to {uri}, one wins a name")


def read_data(shards: ShardSet, workers: Facts) -> Finding:
    """Whether every worker reads the data that the driver reads."""
    for facts in workers:
        where = f"worker {facts['rank']} on {facts['host']}"
        if "data_error" in facts:
            return wrong(
                "data of workers",
                f"{where}: {facts['data_error']}",
                needed="data and extractor that every worker can read",
                remedy="put them into a bucket, or below the same path on every node",
            )
        if facts["data_digest"] != shards.digest:
            return wrong(
                "data of workers",
                f"{where} reads digest {facts['data_digest'][:12]}",
                needed=f"digest {shards.digest[:12]}, as the driver reads",
                remedy="copy the same set to every node, or put it into a bucket",
            )
    return good("data of workers", f"the same digest on {len(workers)} worker(s)")


def room_for_cache(experiment: Experiment, shards: ShardSet, workers: Facts) -> Finding:
    """Whether the nodes' disks hold the shards that are kept there."""
    whole = shards.num_images * shards.image_bytes
    needed = CACHE_FLOOR * min(whole, experiment.data.cache_gb * 1e9)
    for facts in workers:
        if facts["cache_free_bytes"] < needed:
            return wrong(
                "cache",
                f"{facts['cache_free_bytes'] / 1e9:.3g} GB are free on {facts['host']}",
                needed=f"{needed / 1e9:.3g} GB for shards that are remote or encoded",
                remedy="lower data.cache_gb with data.shuffle = 'window', or set XDG_CACHE_HOME "
                "to a larger disk",
            )
    least = min(facts["cache_free_bytes"] for facts in workers)
    return good("cache", f"{least / 1e9:.3g} GB free, {needed / 1e9:.3g} GB needed")


def sound_turn(workers: Facts) -> Finding:
    """Whether the first rounds gave finite numbers."""
    scalars = workers[0]["scalars"]
    lost = sorted(name for name, value in scalars.items() if not math.isfinite(value))
    if lost:
        return wrong(
            "a real turn",
            f"{', '.join(lost)} not finite within the first rounds",
            needed="a game that can begin",
            remedy="lower generator.lr and discriminator.lr",
        )
    shown = ", ".join(f"{name} {scalars[name]:.3f}" for name in ("d/loss", "g/loss"))
    return good("a real turn", f"full batches on {workers[0]['device']}: {shown}")


def enough_memory(workers: Facts) -> Finding:
    """Whether the workers of each node fit into its memory, or each into its device's."""
    on_host = Counter(facts["host"] for facts in workers if facts["device"] == "CPU")
    for facts in workers:
        together = facts["peak_bytes"] * max(1, on_host[facts["host"]])
        if together > MAX_MEMORY_SHARE * facts["memory_bytes"]:
            return wrong(
                "memory",
                f"workers on {facts['host']} peak at {together / 1e9:.3g} GB of "
                f"{facts['memory_bytes'] / 1e9:.3g} GB",
                needed=f"at most {MAX_MEMORY_SHARE:.0%} of it",
                remedy=LESS_MEMORY,
            )
    peak = max(facts["peak_bytes"] for facts in workers)
    total = min(facts["memory_bytes"] for facts in workers)
    return good("memory", f"a worker peaks at {peak / 1e9:.3g} GB of {total / 1e9:.3g} GB")


def wide_link(workers: Facts) -> Finding:
    """Whether exchanging gradients costs little of a round."""
    rates = [facts["bytes_per_sec"] for facts in workers if facts["bytes_per_sec"]]
    if not rates:
        return good("link", "one worker: nothing to exchange")
    rate, facts, num = min(rates), workers[0], len(workers)
    spent = facts["round_bytes"] * 2 * (num - 1) / num / rate
    share = spent / facts["round_sec"]
    said = f"{rate / 1e6:.3g} MB/s in an all-reduce of {num} workers, {share:.0%} of a round"
    if share > MAX_EXCHANGE_SHARE:
        needed = facts["round_bytes"] * 2 * (num - 1) / num
        needed /= MAX_EXCHANGE_SHARE * facts["round_sec"]
        return wrong(
            "link",
            said,
            needed=f"{needed / 1e6:.3g} MB/s, so that it is at most {MAX_EXCHANGE_SHARE:.0%}",
            remedy="fewer workers or a larger turns.batch_size; for NCCL, look at its interface "
            "(NCCL_DEBUG=INFO)",
        )
    return good("link", said)


def estimate(
    experiment: Experiment, shards: ShardSet, workers: Facts, *, price_per_hour: float | None
) -> Estimate:
    """What playing and judging the whole experiment takes on these workers."""
    total, num = experiment.turns.total_nimg, len(workers)
    rate = workers[0]["img_per_sec"]
    evaluations = max(1, round(total / experiment.evaluate_nimg))
    judged = shards.num_images + evaluations * experiment.evaluate.images
    seconds = total / rate + judged / (num * min(facts["judged_per_sec"] for facts in workers))
    hours = seconds * num / 3600
    return Estimate(
        rate, seconds, hours, None if price_per_hour is None else hours * price_per_hour
    )
