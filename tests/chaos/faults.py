"""The faults: each one small function that breaks one thing of a running scene, by its name."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.chaos import processes
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.scene import SECOND_COMMAND_SEC, Scene
from tests.chaos.schedule import Kind

Injection = Callable[[Scene, random.Random], None]
BOTH = ("forger", "plain")
ALONE_NIMG = 1000  # to be played by one worker before its node comes back
GONE_SEC = 240  # the longest that it stays away
ASLEEP_SEC = 150  # the longest that a frozen driver sleeps


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind: how it is injected, on which stage, in which arms it makes sense."""

    inject: Injection
    kind: Kind
    arms: tuple[str, ...]
    stops_workers: bool
    needs_s3: bool


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    *,
    stage: str = "own",
    arms: tuple[str, ...] = BOTH,
    stops_workers: bool = False,
    needs_s3: bool = False,
    weight: int = 2,
    per_run: int = 5,
) -> Callable[[Injection], Injection]:
    """Registers a function as the fault of this name."""

    def register(inject: Injection) -> Injection:
        kind = Kind(stage, weight, per_run)
        FAULTS[name] = Fault(inject, kind, arms, stops_workers, needs_s3)
        return inject

    return register


# --- processes --------------------------------------------------------------------------------


@fault("SIGKILL rank 0", stops_workers=True)
def kill_rank_0(scene: Scene, dice: random.Random) -> None:
    processes.strike(scene.ranks(2)[0], signal.SIGKILL)


@fault("SIGKILL rank 1", stops_workers=True)
def kill_rank_1(scene: Scene, dice: random.Random) -> None:
    processes.strike(scene.ranks(2)[1], signal.SIGKILL)


@fault("SIGKILL Train controller", stops_workers=True)
def kill_controller(scene: Scene, dice: random.Random) -> None:
    processes.strike(scene.one(processes.CONTROLLER), signal.SIGKILL)


@fault("SIGKILL raylet", stops_workers=True)
def kill_raylet(scene: Scene, dice: random.Random) -> None:
    processes.strike(scene.one(processes.RAYLET), signal.SIGKILL)


@fault("SIGKILL driver", stops_workers=True)
def kill_driver(scene: Scene, dice: random.Random) -> None:
    scene.command.send_signal(signal.SIGKILL)


@fault("SIGTERM driver", stops_workers=True)
def terminate_driver(scene: Scene, dice: random.Random) -> None:
    scene.command.send_signal(signal.SIGTERM)


@fault("SIGSTOP a rank", stops_workers=True)
def stop_a_rank(scene: Scene, dice: random.Random) -> None:
    stopped = dice.choice(scene.ranks(2))
    processes.strike(stopped, signal.SIGSTOP)
    # One that nobody ended comes back as a zombie writer.
    scene.later(30, lambda: processes.strike(stopped, signal.SIGCONT))


@fault("memory limit hit", stops_workers=True)
def limit_memory(scene: Scene, dice: random.Random) -> None:
    victim = dice.choice(scene.ranks(2))
    group = processes.limit_memory(victim)

    def remove() -> None:
        processes.strike(victim, signal.SIGKILL)  # where it never asked for more memory
        with suppress(OSError):
            if group is not None:
                group.rmdir()

    scene.later(15, remove)


# --- commands ---------------------------------------------------------------------------------


@fault("second driver, same name", per_run=5)
def start_second(scene: Scene, dice: random.Random) -> None:
    def judge(code: int) -> str | None:
        if code == 2 or (code == 0 and scene.arm.is_complete()):
            return None
        return f"a second driver of the same name ended with {code}"

    scene.add_other(scene.start(), SECOND_COMMAND_SEC, judge)


@fault("driver frozen, second takes over", stage="alone", weight=1, per_run=1, arms=("forger",))
def freeze_driver(scene: Scene, dice: random.Random) -> None:
    frozen = scene.command
    frozen.send_signal(signal.SIGSTOP)
    scene.command = scene.start()

    asleep_since = time.monotonic()

    def thaw() -> None:
        if scene.arm.is_complete() or scene.over or time.monotonic() - asleep_since > ASLEEP_SEC:
            frozen.send_signal(signal.SIGCONT)  # the zombie wakes after its successor is done
        else:
            scene.later(2, thaw)

    scene.later(2, thaw)
    scene.add_other(
        frozen,
        300,
        lambda code: None if code != 0 else "a fenced driver claims to have finished the run",
    )


# --- servers ----------------------------------------------------------------------------------


@fault("MLflow killed and restarted")
def kill_mlflow(scene: Scene, dice: random.Random) -> None:
    scene.stand.kill_mlflow()
    scene.later(dice.uniform(2, 6), scene.stand.restart_mlflow)


@fault("MLflow slow")
def slow_mlflow(scene: Scene, dice: random.Random) -> None:
    _for_a_while(scene, scene.stand.mlflow, "slow", dice.uniform(3, 8))


@fault("MLflow answers 500")
def refuse_mlflow(scene: Scene, dice: random.Random) -> None:
    _for_a_while(scene, scene.stand.mlflow, "refuse", dice.uniform(3, 8))


@fault("S3 down and back", needs_s3=True)
def s3_down(scene: Scene, dice: random.Random) -> None:
    _for_a_while(scene, scene.stand.s3, "down", dice.uniform(2, 6))


@fault("S3 slow", needs_s3=True)
def s3_slow(scene: Scene, dice: random.Random) -> None:
    _for_a_while(scene, scene.stand.s3, "slow", dice.uniform(3, 8))


@fault("S3 answers 503", needs_s3=True)
def s3_refuses(scene: Scene, dice: random.Random) -> None:
    _for_a_while(scene, scene.stand.s3, "refuse", dice.uniform(2, 6))


@fault("S3 cut in mid-transfer", needs_s3=True)
def s3_cut(scene: Scene, dice: random.Random) -> None:
    _for_a_while(scene, scene.stand.s3, "cut", dice.uniform(2, 4))


def _for_a_while(scene: Scene, proxy: Proxy | None, mode: Mode, seconds: float) -> None:
    assert proxy is not None
    proxy.mode = mode

    def heal() -> None:
        if proxy.mode == mode:  # else another fault has come over it, and heals it itself
            proxy.mode = "pass"

    scene.later(seconds, heal)


# --- files ------------------------------------------------------------------------------------


def _damaged_then_killed(scene: Scene, how: str) -> None:
    """A damaged file matters once somebody reads it: the worker that wrote it is killed."""
    victim = scene.ranks(2)[0]
    scene.wait_for(lambda: scene.arm.damage(how), "a checkpoint")
    processes.strike(victim, signal.SIGKILL)


@fault("newest checkpoint cut short", stops_workers=True)
def truncate_newest(scene: Scene, dice: random.Random) -> None:
    _damaged_then_killed(scene, "cut")


@fault("newest checkpoint, a bit flipped", stops_workers=True)
def flip_newest(scene: Scene, dice: random.Random) -> None:
    _damaged_then_killed(scene, "flip")


@fault("newest checkpoint deleted", stops_workers=True)
def delete_newest(scene: Scene, dice: random.Random) -> None:
    _damaged_then_killed(scene, "delete")


@fault("disk full", stage="tight", stops_workers=True, per_run=3)
def fill_disk(scene: Scene, dice: random.Random) -> None:
    ballast = scene.stand.small_disk / "ballast"
    with suppress(OSError), open(ballast, "wb", buffering=0) as file:  # until no byte fits
        while True:
            file.write(b"\0" * 4096)
    scene.later(dice.uniform(8, 14), lambda: ballast.unlink(missing_ok=True))


@fault("NaN in the gradients", stage="watched", stops_workers=True, per_run=3)
def plant_nan(scene: Scene, dice: random.Random) -> None:
    scene.stand.nan_file.touch()


# --- nodes ------------------------------------------------------------------------------------


@fault("node killed and restored", stage="nodes", arms=("forger",), stops_workers=True, per_run=2)
def kill_node(scene: Scene, dice: random.Random) -> None:
    scene.stand.nodes.kill(dice.randrange(len(scene.stand.nodes.workers)))
    _restore_once_it_played_on(scene)


@fault(
    "node preempted, with notice", stage="nodes", arms=("forger",), stops_workers=True, per_run=2
)
def preempt_node(scene: Scene, dice: random.Random) -> None:
    nodes, which, notice_sec = scene.stand.nodes, 0, 10
    node = nodes.workers[which]
    nodes.drain(which, within_sec=notice_sec)

    def take() -> None:
        if node in nodes.workers:
            nodes.kill(nodes.workers.index(node))
        _restore_once_it_played_on(scene)

    scene.later(notice_sec, take)


def _restore_once_it_played_on(scene: Scene) -> None:
    """Two nodes again after the run came further with one: by the clock, a slow machine would
    have both back before it noticed.
    """
    gone_since, reached = time.monotonic(), scene.arm.progress()

    def look() -> None:
        nodes = scene.stand.nodes.workers
        # Where the other one is gone as well there is none to play on with.
        alone = not nodes or scene.arm.progress() >= reached + ALONE_NIMG
        if alone or scene.over or time.monotonic() - gone_since > GONE_SEC:
            scene.stand.nodes.restore()
        else:
            scene.later(1, look)

    scene.later(1, look)


def kinds(*, storage: str, only: tuple[str, ...] = ()) -> dict[str, Kind]:
    """The kinds that can be injected with this storage; `only` those whose name holds a word of
    it.
    """
    return {
        name: one.kind
        for name, one in FAULTS.items()
        if (storage == "s3" or not one.needs_s3)
        and (not only or any(word.lower() in name.lower() for word in only))
    }
