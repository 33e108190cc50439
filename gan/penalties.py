"""Penalties on gradients: how steep D may be where the reals and the fakes lie, and how evenly
G's images may move with their style.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Samples = Float[Tensor, "n *shape"]
Logits = Float[Tensor, " n"]
Scores = Float[Tensor, "n *scores"]  # one logit each, or with the logits of classes beside it


class Weights(NamedTuple):
    """What the penalties of one turn weigh; 0 skips a penalty."""

    r1: float = 0.0
    r2: float = 0.0
    gp: float = 0.0


def logit_of(scores: Scores) -> Logits:
    """The logit of real against fake among what D says of each sample."""
    return scores if scores.ndim == 1 else scores[:, 0]


def logits_and_steepness(
    discriminator: Callable[[Samples], Scores], samples: Samples
) -> tuple[Scores, Float[Tensor, " n"]]:
    """What D says, and |grad_x D(x)|^2 for each sample, summed over the sample's values.

    R1 is gamma/2 of its mean over reals, R2 over fakes (Mescheder et al. 2018, eq. 9 and 10). Both
    results can be differentiated again. `torch.func.vjp` rather than `autograd.grad`, because it
    also works inside torch.compile; it needs a D that treats samples one by one (no BatchNorm).
    """
    scores, pull_back = torch.func.vjp(discriminator, samples)[:2]  # typed as 2 or 3
    of_logits = torch.zeros_like(scores)
    logit_of(of_logits).fill_(1)
    (gradient,) = pull_back(of_logits)
    return scores, gradient.square().flatten(1).sum(1)


def logits_and_differences(
    discriminator: Callable[[Samples], Scores],
    samples: Samples,
    noise: Samples,
    *,
    sigma: float,
) -> tuple[Scores, Float[Tensor, " n"]]:
    """As `logits_and_steepness`, by ((D(x + sigma noise) - D(x)) / sigma)^2.

    Its mean over standard normal noise is |grad D|^2, up to terms of sigma^2: one more forward
    takes the place of the second derivative (Lin et al. 2025, arXiv 2501.08316).
    """
    scores = discriminator(samples)
    moved = discriminator(samples + sigma * noise)
    return scores, ((logit_of(moved) - logit_of(scores)) / sigma).square()


def excess_between(
    discriminator: Callable[[Samples], Scores],
    real: Samples,
    fake: Samples,
    mix: Float[Tensor, " n"],
    *,
    target: float,
) -> Float[Tensor, " n"]:
    """(|grad D(x)| - target)^2 for each pair, at x = mix real + (1 - mix) fake.

    Gulrajani et al. 2017, eq. 3, where the target is 1; each pair has a `mix` of its own.
    """
    weight = mix.view(-1, *[1] * (real.ndim - 1))
    _, steepness = logits_and_steepness(discriminator, weight * real + (1 - weight) * fake)
    if target == 0:
        return steepness
    # A root has no slope at 0: the smallest number keeps a flat D's from being NaN.
    return ((steepness + torch.finfo(steepness.dtype).tiny).sqrt() - target).square()


def images_and_path_lengths(
    synthesis: Callable[[Float[Tensor, "n layers w"]], Samples],
    styles: Float[Tensor, "n layers w"],
    noise: Samples,
) -> tuple[Samples, Float[Tensor, " n"]]:
    """Images, and |J_w^T y| for each: how far an image moves with its style, in the random
    direction y of `noise` (Karras et al. 2020, eq. 4).

    y is scaled by 1 / sqrt(height x width), and the square is a mean over the layers that share
    a style, as in the paper's own figures of the weight.
    """
    images, pull_back = torch.func.vjp(synthesis, styles)[:2]  # typed as 2 or 3
    (moved,) = pull_back(noise / math.sqrt(noise.shape[2] * noise.shape[3]))
    square = moved.square().sum(dim=2).mean(dim=1)
    return images, (square + torch.finfo(square.dtype).tiny).sqrt()
