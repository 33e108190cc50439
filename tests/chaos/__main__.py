"""The chaos suite's command: `python -m tests.chaos --faults 100 --seed 0 --table out.md`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import processes
from tests.chaos.faults import FAULTS, kinds
from tests.chaos.game import STAGES, TOLERANCE
from tests.chaos.ours import Ours, largest_difference
from tests.chaos.scene import Arm, Scene, Struck
from tests.chaos.schedule import Plan, schedule
from tests.chaos.stand import CannotBreak, Stand
from tests.chaos.table import Played, markdown

ARMS = ("forger", "plain")


def main() -> int:
    """Plays the schedule of the seed; 0 where every fault struck, recovered and left no trace."""
    options = parsed(sys.argv[1:])
    processes.adopt_orphans()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="forger-chaos-"))
    print(f"in {folder}", flush=True)
    with Stand(folder, storage=options.storage) as stand:
        if options.what == "soak":
            from tests.chaos.soak import soak

            return soak(stand, options)
        return suite(stand, options)


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("what", nargs="?", choices=("suite", "soak"), default="suite")
    parser.add_argument("--faults", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="a file for the table; the screen as well")
    parser.add_argument("--storage", choices=("s3", "folder"), default="s3")
    parser.add_argument("--arm", choices=ARMS, default="forger")
    parser.add_argument("--only", action="append", default=[], help="kinds with this word")
    parser.add_argument("--per-run", type=int, help="faults of a run; the kind's own if left out")
    parser.add_argument("--run", type=int, nargs="+", help="only these runs of the schedule")
    parser.add_argument("--patience", type=float, default=600, help="seconds a run may take")
    parser.add_argument("--folder", help="where to work; kept afterwards")
    parser.add_argument("--minutes", type=float, default=10, help="soak: how long")
    parser.add_argument(
        "--mttf", type=float, default=120, help="soak: mean seconds between faults"
    )
    return parser.parse_args(words)


def suite(stand: Stand, options: argparse.Namespace) -> int:
    """The seeded schedule, run by run."""
    chosen = kinds(storage=stand.storage, only=tuple(options.only))
    if options.per_run:
        chosen = {
            name: dataclasses.replace(kind, per_run=options.per_run)
            for name, kind in chosen.items()
        }
    plans = schedule(options.seed, options.faults, chosen)
    if options.run is not None:
        plans = tuple(plan for plan in plans if plan.number in options.run)
    planned = sum(len(plan.faults) for plan in plans)
    twins = Twins(stand, options.arm, options.patience)
    played: list[Played] = []
    text = ""
    for plan in plans:
        done = one_run(stand, options, plan, twins)
        played.append(done)
        print(told(plan, done), flush=True)
        words = ["python -m tests.chaos", *sys.argv[1:]]
        text = markdown(options.arm, words, played, planned=planned)
        if options.table:
            options.table.write_text(text)
    print(text)
    struck = [one for run in played for one in run.struck]
    skipped = sum(bool(one.skipped) for one in struck)
    lost = sum(one.recovered_sec is None for one in struck) - skipped
    return int(lost > 0 or any(run.wrong for run in played))


def one_run(stand: Stand, options: argparse.Namespace, plan: Plan, twins: Twins) -> Played:
    """Plays one plan and holds it against its twin."""
    started = time.monotonic()
    if not any(options.arm in FAULTS[fault.kind].arms for fault in plan.faults):
        return not_played(plan, "not for this arm")
    try:
        twin = twins.of(plan.stage)
        arm = new_run(options.arm, stand, plan.stage, plan.name)
    except CannotBreak as error:
        return not_played(plan, str(error))
    scene = Scene(arm, plan, patience_sec=options.patience)
    scene.play()
    stand.heal()
    wrong = [*scene.wrong]
    if arm.is_complete():
        if STAGES[plan.stage].remedied and isinstance(arm, Ours):
            struck = [one for one in scene.struck if not one.skipped]
            given_up = arm.rolled_back_nimg()
            for one, nimg in zip(struck, given_up, strict=False):
                one.lost_nimg = nimg
            if len(given_up) != len(struck):
                wrong.append(f"{len(given_up)} rollbacks of {len(struck)} faults")
            wrong += arm.verdict(twins.with_rollbacks_of(arm))
        else:
            wrong += arm.verdict(twin)
    return Played(plan.name, scene.struck, wrong, time.monotonic() - started, scene.starts)


def not_played(plan: Plan, why: str) -> Played:
    """What the table says of a plan that cannot be played."""
    skipped = [Struck(fault.kind, plan.name, 0, skipped=why) for fault in plan.faults]
    return Played(plan.name, skipped, [], 0, 0)


def new_run(
    arm: str, stand: Stand, stage: str, name: str, *, settings: tuple[str, ...] = ()
) -> Arm:
    """A run of an arm that nobody began yet."""
    if arm == "forger":
        return Ours(stand, stage, name, settings=settings)
    from tests.chaos.plain import Plain

    return Plain(stand, stage, name)


class Twins:
    """The undisturbed runs, each trained once."""

    def __init__(self, stand: Stand, arm: str, patience_sec: float):
        self.stand, self.arm, self.patience_sec = stand, arm, patience_sec
        self._found: dict[tuple[str, ...], Arm] = {}

    def of(self, stage: str) -> Arm:
        """What a run of this stage must equal."""
        settings = STAGES[stage].twin if self.arm == "forger" else ()
        if settings not in self._found:
            name = f"twin-{len(self._found)}"
            self._found[settings] = self._undisturbed(name, settings)
            if self.arm == "plain":  # is it at all the same twice?
                again = self._undisturbed(f"{name}-again", settings)
                wrong = again.verdict(self._found[settings])
                print(f"undisturbed twice: {wrong or 'equal'}", flush=True)
            if settings:
                alone = self._undisturbed(f"{name}-alone", (*settings, "cluster.workers=1"))
                gap, where = largest_difference(alone.weights(), self._found[settings].weights())
                print(f"one worker against two, undisturbed: {where} differs by {gap:.2g} of its "
                      f"size (tolerance {TOLERANCE:.0e})", flush=True)  # fmt: skip
        return self._found[settings]

    def with_rollbacks_of(self, run: Ours) -> Ours:
        """An undisturbed run that is given the rollbacks of `run` before it begins."""
        twin = Ours(self.stand, "watched", f"{run.name}-twin")
        twin.take_rollbacks_of(run)
        self._played(twin)
        return twin

    def _undisturbed(self, name: str, settings: tuple[str, ...]) -> Arm:
        return self._played(new_run(self.arm, self.stand, "own", name, settings=settings))

    def _played(self, twin: Arm) -> Arm:
        started = time.monotonic()
        scene = Scene(twin, Plan(0, "own", ()), patience_sec=self.patience_sec)
        scene.play()
        if not twin.is_complete() or scene.wrong:
            raise RuntimeError(
                f"the undisturbed run did not end: {scene.wrong}; see {self.stand.folder}"
            )
        print(f"{twin.name}: undisturbed in {time.monotonic() - started:.0f} s", flush=True)
        if wrong := twin.verdict(twin):
            raise RuntimeError(f"the undisturbed run is wrong by itself: {wrong}")
        return twin


def told(plan: Plan, done: Played) -> str:
    """A run in a line or a few."""
    lines = [f"{plan.name}: {done.seconds:.0f} s, {done.starts} starts"]
    for one in done.struck:
        after = "never" if one.recovered_sec is None else f"{one.recovered_sec:.1f} s"
        lines.append(
            f"  {one.kind} at {one.nimg}: "
            + (one.skipped or f"recovered after {after}, {one.lost_nimg} replayed")
        )
    return "\n".join([*lines, *(f"  WRONG {line}" for line in done.wrong)])


if __name__ == "__main__":
    sys.exit(main())
