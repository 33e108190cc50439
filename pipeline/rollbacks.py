"""From where a game that was lost was played again, and with which remedies.

A rollback is written down before it has an effect. All that follows from it is a function of the
records and of nimg, so that a game replayed from any checkpoint takes the same course.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from gan.seeds import derive_seed
from pipeline.storage import Storage

FOLDER = "rollbacks"


@dataclass(frozen=True, slots=True)
class Rollback:
    """The game was lost at `from_nimg` and taken up again at `to_nimg`, where a healthy one stood.

    From there on the learning rates are multiplied by `lr_factor`, and with `new_order` the reals
    come in another order.
    """

    number: int
    from_nimg: int
    to_nimg: int
    reason: str
    lr_factor: float
    new_order: bool = True


def rollbacks(storage: Storage) -> list[Rollback]:
    """Every rollback of a run so far, in order."""
    return [Rollback(**json.loads(storage.read(name))) for name in storage.names(FOLDER)]


def record_rollback(storage: Storage, rollback: Rollback) -> None:
    """Writes a rollback down, once; a second writer's record of the same number does not count."""
    name = f"{FOLDER}/{rollback.number:03d}.json"
    storage.create(name, json.dumps(asdict(rollback), indent=1).encode())


def void(nimg: int, num_rollbacks: int, given_up: Sequence[Rollback]) -> bool:
    """Whether what was written at `nimg` after `num_rollbacks` rollbacks was given up later."""
    return any(back.number > num_rollbacks and nimg > back.to_nimg for back in given_up)


def lr_factor_at(given_up: Sequence[Rollback], nimg: int) -> float:
    """What the learning rates are multiplied by at `nimg`."""
    return math.prod(back.lr_factor for back in _in_force(given_up, nimg))


def order_seed_at(seed: int, given_up: Sequence[Rollback], nimg: int) -> int:
    """The seed of the reals' order at `nimg`."""
    renewed = [back.number for back in _in_force(given_up, nimg) if back.new_order]
    return derive_seed(seed, "rollback", renewed[-1]) if renewed else seed


def _in_force(given_up: Sequence[Rollback], nimg: int) -> list[Rollback]:
    """The rollbacks whose remedies hold at `nimg`: each from where the game was taken up again.

    One that was followed by a rollback to an earlier place holds from there: it was not enough.
    """
    return [
        back
        for index, back in enumerate(given_up)
        if min(later.to_nimg for later in given_up[index:]) <= nimg
    ]
