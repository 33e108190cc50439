"""What chance decides in a turn besides the latents: augmentations, mixed styles, and where
penalties look.

Each is drawn for the whole global batch from (seed, stream, turn), so a rank's slice of it does
not depend on how many ranks there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan.augment import NUM_DRAWS, NUM_FIRST, resolved
from gan.config import GameConfig, Sample
from gan.penalties import Weights
from gan.randomness import latents, normal, uniform
from gan.widths import stylegan2_layers


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
    of pairs, noise 'near_real' and 'near_fake', 'other_z' and 'crossover' of mixed styles; only
    those that the game needs.
    """
    batch_size, objective = config.turns.batch_size, config.objective
    drawn = _augmentations(config, seed, "d", turn, probability=probability)
    drawn |= _styles(config, sample, seed, "d", turn)
    if weights.gp:
        drawn["mix"] = uniform(seed, "penalty/mix", turn, shape=(batch_size,))
    if objective.penalty_method == "differences":
        for side, weight in (("real", weights.r1), ("fake", weights.r2)):
            if weight:
                shape, stream = (batch_size, *sample.shape), f"penalty/near/{side}"
                drawn[f"near_{side}"] = normal(seed, stream, turn, shape=shape)
    return drawn


def of_g_turn(
    config: GameConfig, sample: Sample, seed: int, turn: int, *, probability: float
) -> dict[str, Tensor]:
    """The draws of G's turn, each (batch_size, ...): as D's, and 'path_noise' where the turn pays
    for path lengths.
    """
    drawn = _augmentations(config, seed, "g", turn, probability=probability)
    drawn |= _styles(config, sample, seed, "g", turn)
    objective = config.objective
    if objective.path_length_weight and turn % objective.path_length_interval == 0:
        shape = (config.turns.batch_size, *sample.shape)
        drawn["path_noise"] = normal(seed, "penalty/path", turn, shape=shape)
    return drawn


def _styles(
    config: GameConfig, sample: Sample, seed: int, player: str, turn: int
) -> dict[str, Tensor]:
    """Other latents, and from which layer on an image has their style: mostly from none."""
    probability, batch_size = config.generator.style_mixing, config.turns.batch_size
    if not probability:
        return {}
    count = stylegan2_layers(sample.shape[-1])
    mixed, layer = uniform(seed, f"styles/{player}", turn, shape=(2, batch_size))
    crossover = 1 + (layer * (count - 1)).floor()
    latent_dim = config.generator.latent_dim
    how = {"batch_size": batch_size, "latent_dim": latent_dim}
    return {
        "other_z": latents(seed, f"latent/{player}/other", turn, **how),
        "crossover": crossover.where(mixed < probability, float(count)),
    }


def _augmentations(
    config: GameConfig, seed: int, player: str, turn: int, *, probability: float
) -> dict[str, Tensor]:
    if not config.augment.policies:
        return {}
    count = config.turns.batch_size

    def drawn(side: str) -> Tensor:
        stream = f"augment/{player}/{side}"
        first = uniform(seed, stream, turn, shape=(count, NUM_FIRST))
        more = uniform(seed, f"{stream}/more", turn, shape=(count, NUM_DRAWS - NUM_FIRST))
        return resolved(torch.cat([first, more], dim=1), probability)

    return {side: drawn(side) for side in ("real", "fake")}
