"""A player and its loss as one module, so that DDP sees one forward for each backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gan.augment import augment
from gan.codes import Codes
from gan.config import ObjectiveConfig, Policy
from gan.networks import NO_CODES, stylegan2
from gan.networks.parts import channels_last
from gan.objectives import OBJECTIVES, Objective
from gan.penalties import (
    Weights,
    excess_between,
    images_and_path_lengths,
    logit_of,
    logits_and_differences,
    logits_and_steepness,
)
from gan.world import World

Samples = Float[Tensor, "n *shape"]
Labels = Int64[Tensor, " n"]
Scores = Float[Tensor, "n *scores"]
Logits = Float[Tensor, " n"]
Sum = Float[Tensor, ""]
Chance = Mapping[str, Tensor]  # gan.chance, for these samples


class DTurn(nn.Module):
    """D and its loss as one module, so that DDP sees one forward for each backward, penalties
    included.

    D sees samples after the augmentation `policies`, and penalties are on the samples before it.
    `class_weight` weighs what an auxiliary classifier gets wrong, on reals and fakes (Odena et al.
    2017, eq. 3). `codes` are what it is to read off fakes, whose latents are the chance "z".
    """

    def __init__(
        self,
        discriminator: nn.Module,
        config: ObjectiveConfig,
        *,
        policies: tuple[Policy, ...] = (),
        class_weight: float = 0.0,
        codes: Codes = NO_CODES,
    ):
        super().__init__()
        self.player = discriminator
        self.config, self.objective = config, OBJECTIVES[config.name]
        self.policies, self.class_weight = policies, class_weight
        self.codes, self.info_weight = codes, config.info_weight

    def forward(
        self,
        real: Samples,
        fake: Samples,
        labels: Labels | None,
        weights: Weights,
        chance: Chance,
    ) -> tuple[Sum, dict[str, Sum]]:
        """The loss summed over the samples, and sums to report."""

        def judge(side: str) -> Callable[[Samples], Scores]:
            how = {"policies": self.policies, "draws": chance.get(side)}
            return partial(_judged, self.player, labels, dtype=real.dtype, **how)

        real_scores, r1 = self._scored(judge("real"), real, weights.r1, chance.get("near_real"))
        fake_scores, r2 = self._scored(judge("fake"), fake, weights.r2, chance.get("near_fake"))
        real_logits, fake_logits = logit_of(real_scores), logit_of(fake_scores)
        report = {
            "d/real_logit": real_logits.detach().sum(),
            "d/fake_logit": fake_logits.detach().sum(),
        }
        with torch.no_grad():
            report["d/real_sign"], report["d/accuracy"] = self._judgement(real_logits, fake_logits)
        real_logits, fake_logits = _compared(self.objective, real_logits, fake_logits)
        loss = self.objective.d_loss(real_logits, fake_logits).sum()
        report["d/loss"] = loss.detach()
        gp = None
        if weights.gp:
            target, mix = self.config.gp_target, chance["mix"]
            gp = excess_between(judge("real"), real, fake, mix, target=target)
        penalties = (
            ("r1", weights.r1 / 2, r1),
            ("r2", weights.r2 / 2, r2),
            ("gp", weights.gp, gp),
        )
        for name, weight, penalty in penalties:
            if penalty is not None:
                loss = loss + weight * penalty.sum()
                report[f"d/{name}"] = penalty.detach().sum()
        if self.class_weight:
            wrong = _class_loss(real_scores, labels) + _class_loss(fake_scores, labels)
            loss = loss + self.class_weight * wrong
            report["d/class_loss"] = wrong.detach()
        if self.codes:
            misread = self.codes.misread(fake_scores[:, 1:], chance["z"]).sum()
            loss = loss + self.info_weight * misread
            report["d/code_loss"] = misread.detach()
        with torch.no_grad():
            name = "game/distance" if self.objective.coin is None else "game/value"
            report[name] = self.objective.value(real_logits, fake_logits).sum()
        return loss, report

    def _scored(
        self,
        judge: Callable[[Samples], Scores],
        samples: Samples,
        weight: float,
        noise: Samples | None,
    ) -> tuple[Scores, Logits | None]:
        """What D says of each sample, and how steep it is there if that weighs anything."""
        if not weight:
            return judge(samples), None
        if noise is None:
            return logits_and_steepness(judge, samples)
        return logits_and_differences(judge, samples, noise, sigma=self.config.penalty_sigma)

    def _judgement(self, real: Logits, fake: Logits) -> tuple[Sum, Sum]:
        """E sign(logit) over reals, the r_t of Karras et al. 2020, eq. 1, and D's accuracy, as
        sums; a logit of 0 is a tossed coin.

        Where a number added to all logits changes no loss D's zero is anywhere: there the logit is
        that of a pair, real - fake.
        """
        if self.objective.floats:
            sign = (real - fake).sign().sum()
            return sign, (len(real) + sign) / 2
        real_sign, fake_sign = real.sign().sum(), fake.sign().sum()
        return real_sign, len(real) / 2 + (real_sign - fake_sign) / 4


class GTurn(nn.Module):
    """G and its loss as one module. The opponent is not part of it: DDP must not exchange D's
    gradients.

    `policies`, `class_weight` and `codes` are as in `DTurn`.
    """

    def __init__(
        self,
        generator: nn.Module,
        opponent: nn.Module,
        config: ObjectiveConfig,
        *,
        policies: tuple[Policy, ...] = (),
        class_weight: float = 0.0,
        codes: Codes = NO_CODES,
    ):
        super().__init__()
        self.player = generator
        self._opponent = (opponent,)  # a tuple hides it from nn.Module's registry
        self.objective, self.relative = OBJECTIVES[config.name], config.relative
        self.policies, self.class_weight = policies, class_weight
        self.codes, self.info_weight = codes, config.info_weight
        self.path_weight = config.path_length_weight * config.path_length_interval

    def forward(
        self,
        real: Samples | None,
        z: Float[Tensor, "n z"],
        labels: Labels | None,
        chance: Chance,
        fake: Samples | None = None,
    ) -> tuple[Sum, dict[str, Sum]]:
        """The loss summed over the samples, and sums to report; of `fake`, where G has made it."""
        (opponent,) = self._opponent

        def judge(side: str, samples: Samples) -> Scores:
            how = {"policies": self.policies, "draws": chance.get(side)}
            return _judged(opponent, labels, samples, dtype=z.dtype, **how)

        lengths = None
        if fake is None:
            fake, lengths = self._forged(z, labels, chance)
        fake_scores = judge("fake", fake)
        fake_logits = logit_of(fake_scores)
        if self.relative:
            assert real is not None
            with torch.no_grad():
                real_logits = logit_of(judge("real", real))
        else:
            real_logits = torch.zeros_like(fake_logits)  # not looked at
        real_logits, fake_logits = _compared(self.objective, real_logits, fake_logits)
        loss = self.objective.g_loss(real_logits, fake_logits).sum()
        report = {"g/loss": loss.detach()}
        if self.class_weight:
            wrong = _class_loss(fake_scores, labels)
            loss = loss + self.class_weight * wrong
            report["g/class_loss"] = wrong.detach()
        if self.codes:
            misread = self.codes.misread(fake_scores[:, 1:], z).sum()
            loss = loss + self.info_weight * misread
            report["g/code_loss"] = misread.detach()
        if lengths is not None:
            assert isinstance(self.player, stylegan2.Generator)
            loss = loss + self.path_weight * (lengths - self.player.path_mean).square().sum()
            report["g/path_length"] = lengths.detach().sum()
        return loss, report

    def _forged(
        self, z: Float[Tensor, "n z"], labels: Labels | None, chance: Chance
    ) -> tuple[Samples, Float[Tensor, " n"] | None]:
        """Fakes, and how far each moves with its style where that is to be paid for."""
        noise = chance.get("path_noise")
        if noise is None:
            return self.player(z, labels, *styles_mixed(chance)), None
        assert isinstance(self.player, stylegan2.Generator)
        styles = self.player.styles(z, labels, *styles_mixed(chance))
        return images_and_path_lengths(self.player.images, styles, noise)


def styles_mixed(chance: Chance) -> tuple[Tensor, ...]:
    """What G takes beside latents and labels where styles are mixed: other latents, and the layer
    where each image goes over to them.
    """
    return (chance["other_z"], chance["crossover"]) if "other_z" in chance else ()


def _judged(
    discriminator: nn.Module,
    labels: Labels | None,
    samples: Samples,
    *,
    dtype: torch.dtype,
    policies: tuple[Policy, ...],
    draws: Tensor | None,
) -> Scores:
    """What D says of samples after their augmentation."""
    if policies:
        assert draws is not None
        samples = augment(samples, draws, policies=policies)
    if samples.ndim == 4:
        samples = channels_last(samples)
    return discriminator(samples, labels).to(dtype)


def _class_loss(scores: Scores, labels: Labels | None) -> Sum:
    """-log p(label) by the logits beside the first, summed over the samples."""
    assert labels is not None
    return cross_entropy(scores[:, 1:], labels, reduction="sum")


def _compared(objective: Objective, real: Logits, fake: Logits) -> tuple[Logits, Logits]:
    """The logits as the losses take them: relative to the other side's mean where that is the
    game, over the batches of all ranks. Every rank must call this.
    """
    if not objective.averages:
        return real, fake
    sums = torch.stack([real.sum(), fake.sum(), real.new_full((), len(real))])
    real_sum, fake_sum, count = World.current().sum_with_gradient(sums)
    return real - fake_sum / count, fake - real_sum / count
