"""From a typed command to the first tick of a training: `forger submit train` on a running cluster
against `forger train`, which starts a Ray of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from pipeline.run import Run
from pipeline.storage import open_storage
from tests.pipeline.desk import ROOT, clean_environment

ROUNDS = 3
FIRST = {  # what happened once a line with these words is on the screen
    "the cluster has the job": "job      ",
    "the program runs": "loading torch",
    "torch, ray, mlflow loaded": "starting Ray",
    "workers asked for": "playing of",
}
SMALL = (
    "cluster.workers=2", "turns.total_kimg=1", "tracking.tick_kimg=0.064", "evaluate.images=200",
)  # fmt: skip


def main() -> None:
    """Prints each step's seconds since the command was typed, medians of ROUNDS, in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = clean_environment() | {"PYTHONPATH": str(ROOT)}
        _typed(folder, plain, "prepare", "embedded:digits", "data/digits")
        _typed(folder, plain, "up", "--store", "folder")
        try:
            lines = (folder / ".forger" / "env").read_text().splitlines()
            named = dict(line.removeprefix("export ").split("=", 1) for line in lines)
            both = plain | {"MLFLOW_TRACKING_URI": named["MLFLOW_TRACKING_URI"]}
            here: list[dict[str, float]] = []
            there: list[dict[str, float]] = []
            for number in range(ROUNDS):
                here.append(_measured(folder, both, f"here-{number}", "train"))
                there.append(_measured(folder, both | named, f"there-{number}", "submit", "train"))
        finally:
            _typed(folder, plain, "down", "--purge")
    print("| seconds since the command | forger train | forger submit train |\n|---|---|---|")
    for step in (*FIRST, "first tick"):
        cells = [
            f"{median(run[step] for run in runs):.1f}" if step in runs[0] else ""
            for runs in (here, there)
        ]
        print(f"| {step} | {' | '.join(cells)} |")
    ratio = [b["first tick"] / a["first tick"] for a, b in zip(here, there, strict=True)]
    print(f"submit / local: {median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})")


def _typed(folder: Path, env: dict[str, str], *words: str) -> None:
    command = [sys.executable, "-m", "jobs", *words]
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)


def _measured(folder: Path, env: dict[str, str], run: str, *verb: str) -> dict[str, float]:
    """When each step was reached, in seconds since the command was typed."""
    experiment = str(ROOT / "jobs" / "experiments" / "digits.toml")
    command = [sys.executable, "-m", "jobs", *verb, experiment, f"name={run}", *SMALL]
    found: dict[str, float] = {}
    began = time.time()
    unbuffered = env | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=unbuffered, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            for step, words in FIRST.items():
                if words in line:
                    found.setdefault(step, time.time() - began)
    assert process.returncode == 0, os.strerror(process.returncode)
    tick = next(Run.at(open_storage(folder / "runs" / run)).journal())
    return found | {"first tick": tick.time_ms / 1000 - began}


if __name__ == "__main__":
    main()
