"""Who makes chunks of features: this process, or workers on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.experiment import ClusterConfig
from pipeline.extraction import Each, here


@contextmanager
def hands(cluster: ClusterConfig) -> Iterator[Each]:
    """One worker without a cluster is this process; anything else is Ray's, within the block.

    Raises ConfigError where the cluster does not answer or is too small.
    """
    if cluster.max_workers == 1 and not os.environ.get("RAY_ADDRESS"):
        yield here
        return
    from pipeline.cluster import check_address, connected, each_on_ray

    def each(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        told = [(*job, cluster.cpus_per_worker) for job in jobs]
        return each_on_ray(function, told, cluster=cluster)

    check_address()
    with connected(cluster):
        yield each
