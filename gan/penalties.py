"""Gradient penalties on D: how steep it may be where the reals and the fakes lie."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Samples = Float[Tensor, "n *shape"]
Logits = Float[Tensor, " n"]


def logits_and_steepness(
    discriminator: Callable[[Samples], Logits], samples: Samples
) -> tuple[Logits, Float[Tensor, " n"]]:
    """D's logits and |grad_x D(x)|^2 for each sample, summed over the sample's values.

    R1 is gamma/2 of its mean over reals, R2 over fakes (Mescheder et al. 2018, eq. 9 and 10). Both
    results can be differentiated again. `torch.func.vjp` rather than `autograd.grad`, because it
    also works inside torch.compile; it needs a D that treats samples one by one (no BatchNorm).
    """
    logits, pull_back = torch.func.vjp(discriminator, samples)[:2]  # typed as 2 or 3
    (gradient,) = pull_back(torch.ones_like(logits))
    return logits, gradient.square().flatten(1).sum(1)
