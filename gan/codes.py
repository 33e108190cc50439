"""InfoGAN's codes (Chen et al. 2016): parts of the latent that D is to read off G's images.

The first numbers of a latent decide them, so a seed's image has its code, and nothing else needs
to know: the largest of `discrete` normal numbers is each of them with one probability, and the
distribution function makes a normal number uniform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gan.player_config import GeneratorConfig

Latents = Float[Tensor, "n z"]


@dataclass(frozen=True, slots=True)
class Codes:
    """How many there are: one choice among `discrete`, and `continuous` numbers in [-1, 1]."""

    discrete: int = 0
    continuous: int = 0

    @classmethod
    def of(cls, config: GeneratorConfig) -> Codes:
        """Those that a generator has."""
        return cls(config.discrete_codes, config.continuous_codes)

    def __len__(self) -> int:
        return self.discrete + self.continuous

    def spelled(self, z: Latents) -> Latents:
        """Latents as G sees them: the choice as one of so many, numbers in [-1, 1], the rest."""
        chosen, between, rest = z.split(
            [self.discrete, self.continuous, z.shape[1] - len(self)], dim=1
        )
        if self.discrete:
            chosen = F.one_hot(chosen.argmax(dim=1), self.discrete).to(z.dtype)
        return torch.cat([chosen, torch.erf(between / math.sqrt(2)), rest], dim=1)

    def misread(self, read: Float[Tensor, "n codes"], z: Latents) -> Float[Tensor, " n"]:
        """-log q(code | x) for each image, up to a constant: of the choice by its logits, of the
        numbers by normal distributions of variance 1 around what was read (eq. 4 and section 6).
        """
        spelled = self.spelled(z)[:, : len(self)]
        miss = (read[:, self.discrete :] - spelled[:, self.discrete :]).square().sum(dim=1) / 2
        if self.discrete:
            chosen = spelled[:, : self.discrete].argmax(dim=1)
            miss = miss + F.cross_entropy(read[:, : self.discrete], chosen, reduction="none")
        return miss


class CodedGenerator(nn.Module):
    """A G whose latents are spelled out first."""

    def __init__(self, player: nn.Module, codes: Codes):
        super().__init__()
        self.player, self.codes = player, codes

    def forward(self, z: Latents, labels: Tensor | None) -> Float[Tensor, "n *shape"]:
        return self.player(self.codes.spelled(z), labels)


class CodesHead(nn.Module):
    """Features to a logit and, beside it, what is read of the codes, (n, 1 + codes)."""

    def __init__(self, head: nn.Module, num_features: int, codes: Codes):
        super().__init__()
        self.head = head
        self.codes = nn.Linear(num_features, len(codes))
        nn.init.normal_(self.codes.weight, std=num_features**-0.5)
        nn.init.zeros_(self.codes.bias)

    def forward(
        self, features: Float[Tensor, "n f"], labels: Tensor | None
    ) -> Float[Tensor, "n k"]:
        logits = self.head(features, labels)
        return torch.cat([logits[:, None], self.codes(features)], dim=1)
