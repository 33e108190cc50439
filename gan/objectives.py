"""What each player descends, per sample, from logits; a new objective is one entry of OBJECTIVES.

Logits are D's scores before the sigmoid: D(x) = sigmoid(logit). Every loss is written with
softplus, log sigmoid(t) = -softplus(-t), so that nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from gan.config import ObjectiveName

Logits = Float[Tensor, " n"]


@dataclass(frozen=True, slots=True)
class Objective:
    """A game's two losses and its value; each maps (real logits, fake logits) to (n,) terms."""

    d_loss: Callable[[Logits, Logits], Logits]
    g_loss: Callable[[Logits, Logits], Logits]
    value: Callable[
        [Logits, Logits], Logits
    ]  # what D maximizes; -log 4 when D can only toss a coin
    pairs: bool = False  # whether G's loss looks at reals too


def _value(real: Logits, fake: Logits) -> Logits:
    """V = log D(x) + log(1 - D(G(z))), Goodfellow et al. 2014, eq. 1."""
    return -softplus(-real) - softplus(fake)


def _minimax_d(real: Logits, fake: Logits) -> Logits:
    return -_value(real, fake)


def _minimax_g(real: Logits, fake: Logits) -> Logits:
    """log(1 - D(G(z))), the saturating original: G descends the very value that D ascends."""
    return -softplus(fake)


def _nonsaturating_g(real: Logits, fake: Logits) -> Logits:
    """-log D(G(z)), Goodfellow et al. 2014, section 3."""
    return softplus(-fake)


def _relativistic_d(real: Logits, fake: Logits) -> Logits:
    """-log sigmoid(D(x_i) - D(G(z_i))), Jolicoeur-Martineau 2018, eq. 9: each real against one
    fake.
    """
    return softplus(fake - real)


def _relativistic_g(real: Logits, fake: Logits) -> Logits:
    return softplus(real - fake)


def _relativistic_value(real: Logits, fake: Logits) -> Logits:
    """2 log sigmoid(D(x) - D(G(z))): the pairwise game's value on the scale of V."""
    return -2 * softplus(fake - real)


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "minimax": Objective(_minimax_d, _minimax_g, _value),
    "nonsaturating": Objective(_minimax_d, _nonsaturating_g, _value),
    "relativistic": Objective(_relativistic_d, _relativistic_g, _relativistic_value, pairs=True),
}
