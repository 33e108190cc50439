"""A run of plain Ray Train under the same faults: whether it ended, and with what."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import torch

from pipeline.storage import open_storage
from tests.chaos.ours import points_differ
from tests.chaos.stand import Stand

EPOCHS_NIMG, LOG_NIMG = 10 * 2048, 8 * 16  # as tests.chaos.textbook plays, whose imports are slow


class Plain:
    """One run of tests.chaos.textbook."""

    arm = "plain"
    max_starts = 4  # as somebody would try who looks at it now and then

    def __init__(self, stand: Stand, stage: str, name: str):
        self.stand, self.name = stand, name
        self.uri = f"{stand.runs(stage)}-plain"
        self.folder = stand.folder / "commands" / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.total_nimg = EPOCHS_NIMG

    @property
    def command(self) -> list[str]:
        """What is typed, first and to go on: Ray finds the run by its name."""
        module = "tests.chaos.textbook"
        return [sys.executable, "-m", module, self.name, self.uri, str(self.folder)]

    def environment(self) -> dict[str, str]:
        """Of the command."""
        return self.stand.environment()

    def _told(self, file: str) -> int:
        try:
            return int((self.folder / file).read_text() or 0)
        except FileNotFoundError:
            return 0

    def progress(self) -> int:
        """The last step that rank 0 logged, in images."""
        return self._told("progress")

    def checkpoint_nimg(self) -> int:
        """What rank 0 reported last."""
        return self._told("saved")

    def resumptions(self) -> list[tuple[float, int]]:
        """When rank 0 began to play, and from where."""
        told = (self.folder / "resumed").read_text().split()
        return [(float(at), int(nimg)) for at, nimg in zip(told[::2], told[1::2], strict=True)]

    def is_complete(self) -> bool:
        """Whether a command came to its end."""
        return (self.folder / "final.pt").exists()

    def damage(self, how: str) -> bool:
        """Cuts short, flips a bit of or deletes the newest checkpoint; False for none."""
        storage = open_storage(f"{self.uri}/{self.name}")
        files = [name for name in storage.names() if name.endswith("checkpoint.pt")]
        if not files:
            return False
        newest = sorted(files)[-1]
        if how == "delete":
            storage.delete(newest)
            return True
        data = bytearray(storage.read(newest))
        if how == "cut":
            del data[len(data) // 2 :]
        else:
            data[len(data) // 2] ^= 1
        storage.write(newest, bytes(data))
        return True

    def weights(self) -> dict[str, torch.Tensor]:
        """The players' and the optimizers' tensors."""
        state: dict[str, Any] = torch.load(self.folder / "final.pt", weights_only=True)
        found: dict[str, torch.Tensor] = {}
        for part in ("G", "D"):
            found |= {f"{part}.{name}": value for name, value in state[part].items()}
            for number, moments in state[f"{part}_optimizer"]["state"].items():
                found |= {f"{part}.adam.{number}.{k}": v for k, v in moments.items()}
        return found

    def verdict(self, twin: Plain) -> list[str]:
        """What is wrong with a complete run."""
        mine, theirs = self.weights(), twin.weights()
        unequal = [name for name in theirs if not torch.equal(mine[name], theirs[name])]
        wrong = [f"{len(unequal)} of {len(mine)} tensors differ"] if unequal else []
        return wrong + self._tracked_otherwise()

    def _tracked_otherwise(self) -> list[str]:
        client = self.stand.tracking.client()
        experiment = client.get_experiment_by_name(self.arm)
        if experiment is None:
            return ["MLflow has no run of this one"]
        mine = f"tags.mlflow.runName = '{self.name}'"
        runs = client.search_runs([experiment.experiment_id], filter_string=mine)
        got = sorted(
            (point.step, 0.0)
            for run in runs
            for point in client.get_metric_history(run.info.run_id, "d_loss")
        )
        expected = [(step, 0.0) for step in range(0, EPOCHS_NIMG // 16, LOG_NIMG // 16)]
        many = [f"MLflow has {len(runs)} runs of this one"] if len(runs) != 1 else []
        return many + points_differ("MLflow's d_loss, all runs together", got, expected)
