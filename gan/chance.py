"""What chance decides in a turn besides the latents: augmentations, and where penalties look.

Each is drawn for the whole global batch from (seed, stream, turn), so a rank's slice of it does
not depend on how many ranks there are.
"""

from __future__ import annotations

from torch import Tensor

from gan.augment import NUM_DRAWS, resolved
from gan.config import GameConfig, Sample
from gan.penalties import Weights
from gan.randomness import normal, uniform


def of_d_turn(
    config: GameConfig,
    sample: Sample,
    seed: int,
    turn: int,
    *,
    weights: Weights,
    probability: float,
) -> dict[str, Tensor]:
    """The draws of D's turn, each (batch_size, ...): augmentations of 'real' and 'fake', the 'mix'
    of pairs, noise 'near_real' and 'near_fake'; only those that the game needs.
    """
    batch_size, objective = config.turns.batch_size, config.objective
    drawn = _augmentations(config, seed, "d", turn, probability=probability)
    if weights.gp:
        drawn["mix"] = uniform(seed, "penalty/mix", turn, shape=(batch_size,))
    if objective.penalty_method == "differences":
        for side, weight in (("real", weights.r1), ("fake", weights.r2)):
            if weight:
                shape, stream = (batch_size, *sample.shape), f"penalty/near/{side}"
                drawn[f"near_{side}"] = normal(seed, stream, turn, shape=shape)
    return drawn


def of_g_turn(
    config: GameConfig, seed: int, turn: int, *, probability: float
) -> dict[str, Tensor]:
    """The draws of G's turn, each (batch_size, ...)."""
    return _augmentations(config, seed, "g", turn, probability=probability)


def _augmentations(
    config: GameConfig, seed: int, player: str, turn: int, *, probability: float
) -> dict[str, Tensor]:
    if not config.augment.policies:
        return {}
    shape = (config.turns.batch_size, NUM_DRAWS)
    return {
        side: resolved(uniform(seed, f"augment/{player}/{side}", turn, shape=shape), probability)
        for side in ("real", "fake")
    }
