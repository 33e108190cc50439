"""The exponential moving average of G, with its half-life counted in images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def decay(half_life_kimg: float, *, ramp_up: float, new_images: float, nimg: int) -> float:
    """The weight that the old average keeps after `new_images` images, at `nimg` images in all.

    After one half-life it is 1/2; half-life 0 keeps nothing, so that G_ema = G. See
    `gan.config.EmaConfig` for `ramp_up`.
    """
    half_life = 1000 * half_life_kimg
    if ramp_up:
        half_life = min(half_life, ramp_up * nimg)
    return 0.5 ** (new_images / half_life) if half_life > 0 else 0.0


class Average:
    """G_ema: floating-point parameters move towards G's, buffers are copied.

    Every rank keeps its own, all equal, so that evaluation can be shared among them.
    """

    def __init__(self, player: nn.Module):
        self.module = copy.deepcopy(player).requires_grad_(False).eval()
        self._average: list[Tensor] = list(self.module.parameters())
        self._source: list[Tensor] = list(player.parameters())
        self._buffers = list(zip(self.module.buffers(), player.buffers(), strict=True))

    @torch.no_grad()
    def update(self, weight: float) -> None:
        """average = weight * average + (1 - weight) * player."""
        # torch has no public name for a fused lerp.
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            self._average, self._source, 1 - weight
        )
        for kept, new in self._buffers:
            kept.copy_(new)
