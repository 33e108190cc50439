"""A player and its loss as one module, so that DDP sees one forward for each backward."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gan.config import ObjectiveConfig
from gan.objectives import OBJECTIVES, Objective
from gan.penalties import logits_and_steepness
from gan.world import World

Logits = Float[Tensor, " n"]


class DTurn(nn.Module):
    """D and its loss as one module, so that DDP sees one forward for each backward, penalties
    included.
    """

    def __init__(self, discriminator: nn.Module, config: ObjectiveConfig):
        super().__init__()
        self.player = discriminator
        self.objective = OBJECTIVES[config.name]

    def forward(
        self,
        real: Float[Tensor, "n *shape"],
        fake: Float[Tensor, "n *shape"],
        labels: Int64[Tensor, " n"] | None,
        r1_gamma: float,
        r2_gamma: float,
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss summed over the samples, and sums to report; gamma 0 skips that penalty."""

        def score(samples: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
            return self.player(samples, labels).to(real.dtype)

        if r1_gamma:
            real_logits, r1 = logits_and_steepness(score, real)
        else:
            real_logits, r1 = score(real), None
        if r2_gamma:
            fake_logits, r2 = logits_and_steepness(score, fake)
        else:
            fake_logits, r2 = score(fake), None

        real_logit, fake_logit = real_logits.detach().sum(), fake_logits.detach().sum()
        real_logits, fake_logits = _compared(self.objective, real_logits, fake_logits)
        loss = self.objective.d_loss(real_logits, fake_logits).sum()
        report = {"d/loss": loss.detach()}
        for name, gamma, steepness in (("d/r1", r1_gamma, r1), ("d/r2", r2_gamma, r2)):
            if steepness is not None:
                loss = loss + gamma / 2 * steepness.sum()
                report[name] = steepness.detach().sum()
        with torch.no_grad():
            name = "game/distance" if self.objective.coin is None else "game/value"
            report[name] = self.objective.value(real_logits, fake_logits).sum()
            report["d/real_logit"], report["d/fake_logit"] = real_logit, fake_logit
            report["d/real_sign"], report["d/accuracy"] = self._judgement(real_logits, fake_logits)
        return loss, report

    def _judgement(
        self, real: Float[Tensor, " n"], fake: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """E sign(logit) over reals, the r_t of Karras et al. 2020, eq. 1, and D's accuracy, as
        sums; a logit of 0 is a tossed coin.

        A game of pairs leaves D's zero open, so there the logit is that of the pair: real - fake.
        """
        if self.objective.pairs:
            sign = (real - fake).sign().sum()
            return sign, (len(real) + sign) / 2
        real_sign, fake_sign = real.sign().sum(), fake.sign().sum()
        return real_sign, len(real) / 2 + (real_sign - fake_sign) / 4


class GTurn(nn.Module):
    """G and its loss as one module. The opponent is not part of it: DDP must not exchange D's
    gradients.
    """

    def __init__(self, generator: nn.Module, opponent: nn.Module, config: ObjectiveConfig):
        super().__init__()
        self.player = generator
        self._opponent = (opponent,)  # a tuple hides it from nn.Module's registry
        self.objective = OBJECTIVES[config.name]

    def forward(
        self,
        real: Float[Tensor, "n *shape"] | None,
        z: Float[Tensor, "n z"],
        labels: Int64[Tensor, " n"] | None,
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss summed over the samples, and sums to report."""
        (opponent,) = self._opponent
        fake_logits = opponent(self.player(z, labels), labels).to(z.dtype)
        if self.objective.pairs or self.objective.averages:
            with torch.no_grad():
                real_logits = opponent(real, labels).to(z.dtype)
        else:
            real_logits = torch.zeros_like(fake_logits)  # not looked at
        real_logits, fake_logits = _compared(self.objective, real_logits, fake_logits)
        loss = self.objective.g_loss(real_logits, fake_logits).sum()
        return loss, {"g/loss": loss.detach()}


def _compared(objective: Objective, real: Logits, fake: Logits) -> tuple[Logits, Logits]:
    """The logits as the losses take them: relative to the other side's mean where that is the
    game, over the batches of all ranks. Every rank must call this.
    """
    if not objective.averages:
        return real, fake
    sums = torch.stack([real.sum(), fake.sum(), real.new_tensor(float(len(real)))])
    real_sum, fake_sum, count = World.current().sum_with_gradient(sums)
    return real - fake_sum / count, fake - real_sum / count
