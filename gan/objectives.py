"""What each player descends, per sample, from logits; a new objective is one entry of OBJECTIVES.

Logits are D's scores before the sigmoid: D(x) = sigmoid(logit), and 0 is a tossed coin. Losses of
probabilities are written with softplus, log sigmoid(t) = -softplus(-t), so that nothing overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

from gan.config import ObjectiveName

Logits = Float[Tensor, " n"]


@dataclass(frozen=True, slots=True)
class Objective:
    """A game's two losses; each maps (real logits, fake logits) to (n,) terms.

    Where `averages`, logits are given relative to the other side's mean over the global batch.
    """

    d_loss: Callable[[Logits, Logits], Logits]
    g_loss: Callable[[Logits, Logits], Logits]
    coin: float | None  # d_loss of a D that can only toss a coin; None: a critic without bounds
    averages: bool = False
    floats: bool = False  # a number added to all logits changes no loss: D's zero is anywhere

    def value(self, real: Logits, fake: Logits) -> Logits:
        """What D maximizes: d_loss on the scale of Goodfellow et al. 2014, eq. 1.

        It is -log 4 where D can only toss a coin and 0 where it is never wrong. Of a critic it is
        its estimate of the distance, E D(x) - E D(G(z)).
        """
        scale = 1.0 if self.coin is None else math.log(4) / self.coin
        return -scale * self.d_loss(real, fake)


def _minimax_d(real: Logits, fake: Logits) -> Logits:
    """-log D(x) - log(1 - D(G(z))), Goodfellow et al. 2014, eq. 1."""
    return softplus(-real) + softplus(fake)


def _minimax_g(real: Logits, fake: Logits) -> Logits:
    """log(1 - D(G(z))), the saturating original: G descends the very value that D ascends."""
    return -softplus(fake)


def _nonsaturating_g(real: Logits, fake: Logits) -> Logits:
    """-log D(G(z)), Goodfellow et al. 2014, section 3."""
    return softplus(-fake)


def _least_squares_d(real: Logits, fake: Logits) -> Logits:
    """Mao et al. 2017, eq. 2 with b = 1 for reals and a = -1 for fakes, so that 0 is a coin."""
    return ((real - 1).square() + (fake + 1).square()) / 2


def _least_squares_g(real: Logits, fake: Logits) -> Logits:
    """Mao et al. 2017, eq. 2 with c = b: fakes are to be taken for reals."""
    return (fake - 1).square() / 2


def _hinge_d(real: Logits, fake: Logits) -> Logits:
    """Lim & Ye 2017; Miyato et al. 2018, eq. 16: no more is asked than a margin of 1."""
    return relu(1 - real) + relu(1 + fake)


def _critic_d(real: Logits, fake: Logits) -> Logits:
    """Arjovsky et al. 2017, eq. 2: -W_1 where D is the best 1-Lipschitz critic."""
    return fake - real


def _critic_g(real: Logits, fake: Logits) -> Logits:
    """-D(G(z)): of Wasserstein and hinge games (Miyato et al. 2018, eq. 17)."""
    return -fake


def _relativistic_d(real: Logits, fake: Logits) -> Logits:
    """-log sigmoid(D(x_i) - D(G(z_i))), Jolicoeur-Martineau 2018, eq. 9: each real against one
    fake.
    """
    return softplus(fake - real)


def _relativistic_g(real: Logits, fake: Logits) -> Logits:
    return softplus(real - fake)


def _average_g(real: Logits, fake: Logits) -> Logits:
    """The same as D's with the sides exchanged, Jolicoeur-Martineau 2018, eq. 10 and 11."""
    return softplus(real) + softplus(-fake)


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "minimax": Objective(_minimax_d, _minimax_g, coin=math.log(4)),
    "nonsaturating": Objective(_minimax_d, _nonsaturating_g, coin=math.log(4)),
    "least-squares": Objective(_least_squares_d, _least_squares_g, coin=1.0),
    "hinge": Objective(_hinge_d, _critic_g, coin=2.0),
    "wasserstein": Objective(_critic_d, _critic_g, coin=None, floats=True),
    "relativistic": Objective(_relativistic_d, _relativistic_g, coin=math.log(2), floats=True),
    "relativistic-average": Objective(
        _minimax_d, _average_g, coin=math.log(4), averages=True, floats=True
    ),
}
