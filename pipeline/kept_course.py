"""A game of hours on a mixture, kept in a folder: where it stands, and what its looks found."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from gan.config import ConfigError, GameConfig
from gan.game import Game
from gan.modes import Modes
from pipeline.checkpoint import CheckpointWriter, Standing, clear_up, standings
from pipeline.identity import as_at_first
from pipeline.storage import Storage, open_storage

COURSE = "course.json"
KEPT_SEC = 60.0  # what a kill may cost
Course = list[tuple[int, Modes]]


@contextmanager
def kept_in(
    uri: str, mixture: str, config: GameConfig, *, seed: int, looks: int
) -> Iterator[KeptCourse]:
    """One game's place, for one process of this machine; what was kept is written once it is left.

    Raises ConfigError where the folder holds another game, or another process plays this one.
    """
    storage = open_storage(uri)
    with storage.locked(f"another process plays the game that {uri} keeps"):
        kept = KeptCourse(storage, mixture, config, seed=seed, looks=looks)
        try:
            yield kept
        finally:
            kept.wait()


class KeptCourse:
    """A checkpoint and the course up to it; the same game again goes on there."""

    def __init__(
        self, storage: Storage, mixture: str, config: GameConfig, *, seed: int, looks: int
    ):
        self._storage = storage
        told = [mixture, as_at_first(asdict(config)), seed, looks]
        self._digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        if {standing.experiment_digest for standing in standings(self._storage)} - {self._digest}:
            raise ConfigError(
                [
                    f"{storage.uri} keeps a game of other settings, seed or looks; "
                    "repeat the command that began it, or name another folder"
                ]
            )
        self._writer = CheckpointWriter(self._storage, keep=2)
        self._written = time.monotonic()

    def take_up(self, game: Game) -> Course:
        """Puts the game where it stood and returns its course until then; a new game where nothing
        was kept.
        """
        checkpoint, _ = clear_up(self._storage, abandoned=lambda standing: False)
        if checkpoint is None:
            return []
        game.load_state_dict(checkpoint.state)
        rows = json.loads(self._storage.read(COURSE))
        return [
            (row["nimg"], Modes(row["found"], row["of"], _float(row["kl"]), row["good"]))
            for row in rows
            if row["nimg"] <= game.nimg
        ]

    def put(self, game: Game, course: Course, *, now: bool) -> None:
        """Keeps the game as it stands: at once, or where the last time was KEPT_SEC ago."""
        if not now and time.monotonic() - self._written < KEPT_SEC:
            return
        rows = [
            {"nimg": nimg, "found": modes.found, "of": modes.of, "good": modes.good}
            | {"kl": modes.reverse_kl if math.isfinite(modes.reverse_kl) else None}
            for nimg, modes in course
        ]
        # First: a checkpoint without the looks before it would lose them.
        self._storage.write(COURSE, json.dumps(rows, indent=1).encode())
        standing = Standing(nimg=game.nimg, experiment_digest=self._digest)
        self._writer.publish(standing, game.state_dict())
        self._written = time.monotonic()

    def wait(self) -> None:
        """Returns once all is written."""
        self._writer.wait()


def _float(kl: float | None) -> float:
    return math.inf if kl is None else kl
