"""Runs a function as the ranks of a real gloo process group, each in its own process."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

TIMEOUT_SEC = 1200


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """The results of `function(*args)` on every rank, by rank. `function` must be importable."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.NamedTemporaryFile() as rendezvous,
        ProcessPoolExecutor(world_size, context) as pool,
    ):
        waiting = [
            pool.submit(_rank, function, rank, world_size, rendezvous.name + ".store", args)
            for rank in range(world_size)
        ]
        try:
            return [result.result(TIMEOUT_SEC) for result in waiting]
        except TimeoutError:
            for process in pool._processes.values():  # else the end of the block waits for them
                process.kill()
            raise


def _rank(function: Callable[..., Any], rank: int, size: int, store: str, args: tuple) -> Any:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        return function(*args)
    finally:
        dist.destroy_process_group()
