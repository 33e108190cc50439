"""The probability of augmentations that keeps D from learning the reals by heart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gan.config import AugmentConfig
from gan.world import World

PREFIX = "augment/"  # of their names in a saved game
TURNS = 4  # of D, between two looks (Karras et al. 2020, NeurIPS, section 3.1)


class AdaptiveProbability:
    """Rises while r_t = E sign D(real) is above its target and falls while it is below, at most as
    fast as from 0 to 1 in `adapt_kimg` (Karras et al. 2020, NeurIPS, section 3.1).

    r_t is of the global batches of `TURNS` turns, so every rank has the same probability, however
    many there are. It begins at 0 and is part of the game's state.
    """

    def __init__(self, config: AugmentConfig, *, batch_size: int, device: torch.device):
        assert config.target is not None
        assert isinstance(config.probability, float | int)
        self.value = 0.0
        self._target, self._most = config.target, float(config.probability)
        self._images = TURNS * batch_size
        self._step = self._images / (1000 * config.adapt_kimg)
        self._signs = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, signs: Tensor) -> None:
        """Adds the sum of sign D(real) over some of this rank's reals."""
        self._signs += signs

    def settle(self, d_turns: int, world: World) -> None:
        """Moves the probability after every `TURNS`-th turn of D. Every rank must call this."""
        if d_turns % TURNS:
            return
        r_t = float(world.sum(self._signs)) / self._images
        toward = (r_t > self._target) - (r_t < self._target)
        self.value = min(max(self.value + toward * self._step, 0.0), self._most)
        self._signs.zero_()

    def state_dict(self, world: World) -> dict[str, Tensor]:
        """The probability and the signs since it last moved, by 'augment/<name>'. Every rank must
        call this.
        """
        return {
            f"{PREFIX}p": torch.tensor(self.value, dtype=torch.float64),
            f"{PREFIX}signs": world.sum(self._signs.clone()),
        }

    def load_state_dict(self, state: Mapping[str, Tensor], world: World) -> None:
        """Goes on from `state_dict()`, of any number of ranks; anew where a state has none."""
        if f"{PREFIX}p" not in state:
            self.value = 0.0
            self._signs.zero_()
            return
        self.value = float(state[f"{PREFIX}p"])
        signs = state[f"{PREFIX}signs"]
        self._signs.copy_(signs if world.is_first else torch.zeros_like(signs))
