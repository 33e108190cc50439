"""Simulated goodput against the checkpoint interval, for 8 to 4,096 GPUs; draws docs/goodput.png.

`python -m tests.bench.goodput_model [--detect 1 --restart 8 --restore 1 --stall 0.06]`. Failures
are a Poisson process at published rates; what a fault costs is what tests.bench.recovery and
tests.bench.checkpoint_cost measured. Not measured at these sizes: what restarting 4,096 GPUs costs
is an argument.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.experiment import CheckpointConfig

DAY_SEC = 86_400
RATES = {  # failures a GPU-day
    # Grattafiori et al. 2024 (arXiv 2407.21783), table 5: 419 unexpected interruptions of
    # 16,384 GPUs in 54 days.
    "Llama 3": 419 / (16_384 * 54),
    # Kokolis et al. 2025 (arXiv 2410.21680): a mean time to failure of 7.9 h for jobs of
    # 1,024 GPUs of Meta's research clusters.
    "Meta RSC": 24 / 7.9 / 1024,
}
GPUS = (8, 64, 512, 4096)
INTERVALS_SEC = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600)
FAILURES = 4000  # of each simulated run
PLOT = Path(__file__).parents[2] / "docs/goodput.png"


@dataclass(frozen=True, slots=True)
class Costs:
    """What checkpoints and faults cost, in seconds."""

    stall_sec: float = 0.06  # the game stands still while a checkpoint is copied
    publish_sec: float = 2.0  # until it stands on storage; a fault before that loses it
    detect_sec: float = 1.0
    restart_sec: float = 8.0
    restore_sec: float = 1.0

    @property
    def recovery_sec(self) -> float:
        """From the fault to playing again."""
        return self.detect_sec + self.restart_sec + self.restore_sec


def mttf_sec(rate: float, gpus: int) -> float:
    """Mean seconds between failures of a job on so many GPUs, `rate` failures a GPU-day."""
    return DAY_SEC / (rate * gpus)


def simulated(interval_sec: float, mttf: float, costs: Costs, *, seed: int = 0) -> float:
    """The goodput of a job until its FAILURES-th failure: useful seconds / all seconds.

    The job plays `interval_sec`, stands still for the copy, and plays on while that is published;
    a failure takes it back to the last published checkpoint, and may strike while it recovers.
    """
    rng = np.random.default_rng(seed)
    useful = wall = 0.0
    cycle = interval_sec + costs.stall_sec
    for _ in range(FAILURES):
        up = rng.exponential(mttf)
        while up < costs.recovery_sec:  # failed again before it played
            wall += up
            up = rng.exponential(mttf)
        playing = up - costs.recovery_sec
        kept = max(0.0, math.floor((playing - costs.publish_sec) / cycle))
        useful += kept * interval_sec
        wall += up
    return useful / wall


def formula(interval_sec: float, mttf: float, costs: Costs) -> float:
    """1 - (interval / 2 + publish + recovery) / MTTF - stall / interval: to first order."""
    lost = interval_sec / 2 + costs.publish_sec + costs.recovery_sec
    return 1 - lost / mttf - costs.stall_sec / interval_sec


def young_daly(mttf: float, costs: Costs) -> float:
    """The best interval to first order: sqrt(2 stall MTTF) (Young 1974, Daly 2006)."""
    return math.sqrt(2 * costs.stall_sec * mttf)


def goodputs(costs: Costs) -> dict[tuple[str, int], list[float]]:
    """(rate's name, GPUs) -> goodput at each of INTERVALS_SEC, with common random numbers."""
    return {
        (name, gpus): [simulated(i, mttf_sec(rate, gpus), costs) for i in INTERVALS_SEC]
        for name, rate in RATES.items()
        for gpus in GPUS
    }


def regrets(found: dict[tuple[str, int], list[float]]) -> dict[int, float]:
    """Interval -> the most that it costs any case over its own best, as a share of time."""
    table = np.array(list(found.values()))
    worst = (table.max(axis=1, keepdims=True) - table).max(axis=0)
    return dict(zip(INTERVALS_SEC, map(float, worst), strict=True))


def table(found: dict[tuple[str, int], list[float]], costs: Costs) -> str:
    """Markdown: a line a case."""
    shown: Sequence[int] = (5, 15, 30, 60, 300, 1800)
    heads = " | ".join(f"{i} s" for i in shown)
    lines = [
        f"| failures as in | GPUs | MTTF | {heads} | best | Young/Daly |",
        "|" + "---|" * (len(shown) + 5),
    ]
    for (name, gpus), row in found.items():
        mttf = mttf_sec(RATES[name], gpus)
        cells = " | ".join(f"{100 * row[INTERVALS_SEC.index(i)]:.2f} %" for i in shown)
        best = INTERVALS_SEC[int(np.argmax(row))]
        lines.append(
            f"| {name} | {gpus:,} | {mttf / 3600:,.1f} h | {cells} "
            f"| {best} s | {young_daly(mttf, costs):.0f} s |"
        )
    return "\n".join(lines)


def draw(found: dict[tuple[str, int], list[float]], costs: Costs, default_sec: float) -> None:
    """The share of time that is lost, against the interval; one panel a rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, (name, rate) in zip(panels, RATES.items(), strict=True):
        for gpus, colour in zip(GPUS, ("#4477aa", "#228833", "#ccaa33", "#cc3311"), strict=True):
            lost = [100 * (1 - g) for g in found[name, gpus]]
            mttf = mttf_sec(rate, gpus)
            panel.loglog(INTERVALS_SEC, lost, color=colour, marker=".", label=f"{gpus:,} GPUs")
            best = young_daly(mttf, costs)
            if INTERVALS_SEC[0] <= best <= INTERVALS_SEC[-1]:
                level = 100 * (1 - formula(best, mttf, costs))
                panel.plot([best], [level], marker="D", color=colour, markerfacecolor="white")
        panel.axvline(default_sec, color="#999999", linestyle=":", zorder=0)
        panel.set_title(f"{name}: {rate * 1000:.2f} failures per 1,000 GPU-days", fontsize=10)
        panel.set_xlabel("seconds between checkpoints")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("% of time lost (100 - goodput)")
    panels[0].legend(title="diamond: Young/Daly", fontsize=8, title_fontsize=8)
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    """The table, the interval that it supports, and the plot."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.goodput_model")
    for name in Costs.__dataclass_fields__:
        option = f"--{name.removesuffix('_sec')}"
        parser.add_argument(option, dest=name, type=float, default=getattr(Costs(), name))
    costs = Costs(**vars(parser.parse_args()))
    found = goodputs(costs)
    print(costs)
    print(table(found, costs))
    print("\ninterval: the most that it costs any case over that case's own best")
    for interval, regret in regrets(found).items():
        print(f"{interval:>6} s  {100 * regret:.2f} %")
    draw(found, costs, CheckpointConfig().every_sec)


if __name__ == "__main__":
    main()
