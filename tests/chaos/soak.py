"""The soak: faults that come as they like for minutes; the right weights, and the goodput that the
model says.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable

from tests.chaos.ours import Ours
from tests.chaos.scene import Scene
from tests.chaos.schedule import Plan, Planned, exponential
from tests.chaos.stand import Stand

KINDS = ["SIGKILL rank 0", "SIGKILL rank 1", "SIGSTOP a rank", "SIGKILL driver", "SIGTERM driver"]
TRIAL_KIMG = 16
TOLERANCE = 0.1
OUTAGE_SEC, LEAST_SHARE = 20.0, 0.2  # of a fault, and of the time: for how long a game to plan


class TimedScene(Scene):
    """A scene whose faults come by the clock, from the first tick on, until the run is over."""

    def __init__(self, arm: Ours, moments: list[tuple[float, str, int]], *, patience_sec: float):
        super().__init__(arm, Plan(0, "own", ()), patience_sec=patience_sec)
        self._moments_left = list(moments)
        self.first_tick: float | None = None
        self.last_tick = 0.0
        self._nimg = 0
        self._striking = False

    def _tend(self) -> None:
        super()._tend()
        now, nimg = time.monotonic(), self.arm.progress()
        if nimg > self._nimg:
            self._nimg, self.last_tick = nimg, now
            if self.first_tick is None:
                self.first_tick = now
        if self.first_tick is None or self._striking or self.arm.is_complete():
            return
        if nimg >= self.arm.total_nimg:  # played to the end: only the registration is left
            return
        while self._moments_left and now - self.first_tick >= self._moments_left[0][0]:
            _, kind, dice = self._moments_left.pop(0)
            self._striking = True  # a fault that waits for its victim tends the scene too
            self._strike(Planned(kind, 0.0, dice))
            self._striking = False


def soak(stand: Stand, options: argparse.Namespace) -> int:
    """Plays an undisturbed run, then the same under faults; 0 where all is right."""
    share = max(LEAST_SHARE, model(options.mttf, OUTAGE_SEC))
    kimg = options.minutes * 60 * rate_kimg(stand, options.patience) * share
    settings = (
        f"turns.total_kimg={kimg:.3f}",
        "tracking.tick_kimg=0.512",
        "evaluate.every_kimg=50",
    )
    patience = options.minutes * 60 * 3 + options.patience
    twin, undisturbed_sec = played(stand, "soak-twin", settings, [], patience)
    moments = exponential(
        options.seed, mean_sec=options.mttf, within_sec=options.minutes * 120, kinds=KINDS
    )
    scene = timed(stand, "soak", settings, moments, patience)
    scene.play()
    run: Ours = scene.arm  # type: ignore[assignment]
    wrong = [*scene.wrong, *(run.verdict(twin) if run.is_complete() else ["not complete"])]
    assert scene.first_tick is not None
    wall_sec = scene.last_tick - scene.first_tick
    recovered = [one.recovered_sec for one in scene.struck if one.recovered_sec is not None]
    outage_sec = outage(
        (moment, one.recovered_sec)
        for one, moment in zip(scene.struck, scene.moments, strict=True)
        if one.recovered_sec is not None
    )
    # What was replayed is in the outages already: they end past the fault's own tick.
    goodput = undisturbed_sec / wall_sec
    faults = max(1, len(scene.struck))
    said = model(wall_sec / faults, outage_sec / faults)
    print(
        f"soak: {len(scene.struck)} faults in {wall_sec:.0f} s, {len(recovered)} recovered; "
        f"{outage_sec:.0f} s without progress, replay included; undisturbed "
        f"{undisturbed_sec:.0f} s; goodput {goodput:.3f}, the model says {said:.3f}"
    )
    for line in wrong:
        print(f"  WRONG {line}")
    return int(bool(wrong) or abs(goodput - said) > TOLERANCE)


def model(mttf_sec: float, outage_sec: float) -> float:
    """1 - outage / MTTF, where an outage ends when the run is as far as it had been: what the
    formula 1 - (interval / 2 + recovery) / MTTF writes as its two parts.
    """
    return 1 - outage_sec / mttf_sec


def outage(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that (start, length) cover together: a fault that strikes while the run recovers
    from another costs what it adds.
    """
    covered, until = 0.0, -math.inf
    for start, length in sorted(spans):
        covered += max(0.0, start + length - max(start, until))
        until = max(until, start + length)
    return covered


def timed(stand, name, settings, moments, patience) -> TimedScene:
    return TimedScene(Ours(stand, "own", name, settings=settings), moments, patience_sec=patience)


def played(stand, name, settings, moments, patience) -> tuple[Ours, float]:
    """A run, and the seconds between its first tick and its last."""
    scene = timed(stand, name, settings, moments, patience)
    scene.play()
    if scene.wrong or scene.first_tick is None:
        raise RuntimeError(f"the undisturbed run did not end well: {scene.wrong}")
    return scene.arm, scene.last_tick - scene.first_tick  # type: ignore[return-value]


def rate_kimg(stand: Stand, patience: float) -> float:
    """kimg a second of the undisturbed game."""
    settings = (f"turns.total_kimg={TRIAL_KIMG}", "evaluate.every_kimg=50")
    _, seconds = played(stand, "soak-trial", settings, [], patience)
    return TRIAL_KIMG / seconds
