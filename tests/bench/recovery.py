"""From a killed rank to playing again, by its parts: `python -m tests.bench.recovery` kills
ranks of a real run and reads its events.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from tests.chaos import processes
from tests.chaos.ours import Ours
from tests.chaos.scene import Scene
from tests.chaos.schedule import Plan, Planned
from tests.chaos.stand import Stand

KILLS = ("SIGKILL rank 0", "SIGKILL rank 1") * 2
PATIENCE_SEC = 900


def main() -> None:
    """Kills ranks four times in a run; one line a kill, and the medians."""
    processes.adopt_orphans()
    with Stand(Path(tempfile.mkdtemp(prefix="forger-recovery-")), storage="folder") as stand:
        run = Ours(stand, "own", "recovery")
        moments = [Planned(kind, 0.1 + 0.2 * n, n) for n, kind in enumerate(KILLS)]
        scene = Scene(run, Plan(0, "own", tuple(moments)), patience_sec=PATIENCE_SEC)
        scene.play()
        found = [parts(run, moment, scene.ticks) for moment in scene.moments]
        print("seconds from a killed rank to: known (detect), tried again, workers there "
              "(restart), the first new tick (restore and replay)")  # fmt: skip
        for kill in found:
            print("  ".join(f"{name} {sec:.1f}" for name, sec in kill.items()))
        print("median  " + "  ".join(
            f"{name} {median(kill[name] for kill in found if name in kill):.1f}"
            for name in found[0]
        ))  # fmt: skip


def parts(run: Ours, moment: float, ticks: list[tuple[float, int]]) -> dict[str, float]:
    """Seconds of each part of the recovery from the kill at `moment`, by the run's events."""
    after = [e for e in run.events() if e["time_ms"] / 1000 >= moment]
    found, now = {}, moment
    for name, kind in (("detect", "lost"), ("back off", "attempt"), ("restart", "playing")):
        later = [e["time_ms"] / 1000 for e in after if e["kind"] == kind]
        later = [at for at in later if at >= now]
        if later:
            found[name], now = later[0] - now, later[0]
    new = [at for at, _ in ticks if at > now]
    if new:
        found["restore and replay"] = new[0] - now
    return found


if __name__ == "__main__":
    main()
