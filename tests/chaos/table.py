"""What the suite found, as a table of markdown: one line a kind of fault."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.chaos.game import ROOT
from tests.chaos.scene import Struck


@dataclass(slots=True)
class Played:
    """One run of the schedule, over."""

    run: str
    struck: list[Struck]
    wrong: list[str]
    seconds: float
    starts: int
    kinds: set[str] = field(default_factory=set)


def markdown(arm: str, words: Sequence[str], played: Sequence[Played], *, planned: int) -> str:
    """The table, with the command and the machine in its head, and what went wrong below it."""
    struck = [one for run in played for one in run.struck if not one.skipped]
    skipped = [one for run in played for one in run.struck if one.skipped]
    bad = {run.run for run in played if run.wrong}
    broken = len({one.run for one in struck})
    recovered = sum(one.recovered_sec is not None for one in struck)
    equal = sum(one.run not in bad for one in struck)
    text = [
        f"`{' '.join(words)}` (arm: {arm}; {_commit()}; {_machine()}; "
        f"{time.strftime('%Y-%m-%d')}): "
        f"{len(struck)} of {planned} faults struck in {broken} runs, "
        f"{sum(run.seconds for run in played) / 60:.0f} min; "
        f"**{recovered} recovered, {equal} in runs that ended equal**.",
        "",
        "| fault | count | recovered | seconds to recover: median (max) "
        "| images replayed: median (max) | equal |",
        "|---|---|---|---|---|---|",
    ]
    for kind in sorted({one.kind for one in struck}):
        text.append(_row(kind, [one for one in struck if one.kind == kind], bad))
    text.append(_row("**all**", struck, bad))
    for run in played:
        text += [f"\n- {run.run}: {line}" for line in run.wrong]
    text += [f"\n- {one.run}: {one.kind} was not injected: {one.skipped}" for one in skipped]
    return "\n".join(text) + "\n"


def _row(kind: str, struck: Sequence[Struck], bad: set[str]) -> str:
    seconds = [one.recovered_sec for one in struck if one.recovered_sec is not None]
    lost = [one.lost_nimg for one in struck]
    return (
        f"| {kind} | {len(struck)} | {len(seconds)} | {_spread(seconds, '.1f')} "
        f"| {_spread(lost, '.0f')} | {sum(one.run not in bad for one in struck)} |"
    )


def _spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} ({max(values):{form}})" if values else ""


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return f"commit {told.stdout.strip() or 'unknown'}"


def _machine() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}"
