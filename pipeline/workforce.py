"""Who prepares the units: this process, all cores of this machine, or the machines of a Ray."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from gan.config import ConfigError
from pipeline.units import Done, Interrupted, Job, Unit, do_unit

WORTH_SEC = 3.0  # less work than this is done before other processes have started
LOOK_SEC = 0.2

Tick = Callable[[int], None]


def cores() -> int:
    """How many processes this machine runs at once."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each_unit(
    job: Job, units: Sequence[Unit], *, processes: int | None, tick: Tick
) -> Iterator[Done]:
    """Does every unit and yields what became of it, as it comes.

    Without `processes` it is all cores, where that pays: the first unit is done here, and tells.
    Where RAY_ADDRESS is set and every machine can read the source and write the shards, it is the
    cluster. `tick` is told of the number of images that went through. Raises ConfigError where a
    process is lost.
    """
    left = list(units)
    if os.environ.get("RAY_ADDRESS") and processes is None and job.source.anywhere and left:
        yield from _on_ray(job, left, tick)
        return
    many = processes or cores()
    if left and processes is None:
        # This machine may be busy; a remote source keeps nobody busy.
        clock = time.monotonic if "://" in job.source.name else time.process_time
        began = clock()
        yield do_unit(job, left.pop(0), tick)
        if (clock() - began) * len(left) < WORTH_SEC:
            many = 1
    if many > 1 and left:
        yield from _on_cores(job, left, min(many, len(left)), tick)
    else:
        for unit in left:
            yield do_unit(job, unit, tick)


def _on_cores(job: Job, units: list[Unit], processes: int, tick: Tick) -> Iterator[Done]:
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("q", 0), context.Event()
    told = 0

    def look() -> None:
        nonlocal told
        now = count.value
        tick(now - told)
        told = now

    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start, initargs=(job, count, stop)
    )
    running: set[Future[Done]] = set()
    waiting = list(reversed(units))
    try:
        while waiting or running:
            while waiting and len(running) < 2 * processes:  # what is ahead holds no pixels
                running.add(pool.submit(_work, waiting.pop()))
            ended, running = wait(running, LOOK_SEC, FIRST_COMPLETED)
            look()
            for future in ended:
                yield future.result()
        look()
    except BrokenProcessPool:
        raise ConfigError(
            [
                "a process that prepared images was killed, perhaps for want of memory; finished "
                "shards are kept, so the same command goes on (--processes takes fewer at a time)"
            ]
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_mine: tuple[Job, Any, Any] | None = None


def _start(job: Job, count: Any, stop: Any) -> None:
    """Makes a worker ready; it ends with its driver, however that one dies."""
    global _mine
    _mine = (job, count, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the driver acts
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(unit: Unit) -> Done:
    assert _mine is not None
    job, count, stop = _mine

    def tick(images: int) -> None:
        if stop.is_set():
            raise Interrupted
        with count.get_lock():
            count.value += images

    return do_unit(job, unit, tick)


def _on_ray(job: Job, units: list[Unit], tick: Tick) -> Iterator[Done]:
    from pipeline.cluster import check_address, connected, each_on_ray, slots
    from pipeline.experiment import ClusterConfig

    check_address()
    cluster = ClusterConfig(workers=1, device="cpu")
    with connected(cluster):
        at_once = slots(cluster)
        jobs = [(job, unit) for unit in units]
        for done in each_on_ray(do_unit, jobs, cluster=cluster, at_once=at_once):
            tick(sum(len(unit.images) for unit in units if _is_of(unit, done)))
            yield done


def _is_of(unit: Unit, done: Done) -> bool:
    return (unit.uri, unit.number) == (done.uri, done.number)
