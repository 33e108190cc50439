"""Feature matrices and their moments, for the tests of measures."""

from __future__ import annotations

import numpy as np
import torch

from gan.moments import FeatureMoments


def moments_of(*pieces: torch.Tensor, for_kid: bool = True) -> FeatureMoments:
    moments = FeatureMoments.zeros(pieces[0].shape[1], for_kid=for_kid)
    for piece in pieces:
        moments.add(piece)
    return moments


def normal(count: int, dim: int, *, seed: int, scale: float = 1.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, dim, generator=rng, dtype=torch.float64)


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int = 500) -> torch.Tensor:
    """Samples whose sample mean and unbiased sample covariance are exactly these."""
    x = np.random.RandomState(0).standard_normal((count, len(mean)))
    x -= x.mean(0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return torch.from_numpy(whitened @ np.linalg.cholesky(covariance).T + mean)


def correlated(count: int, dim: int, *, seed: int) -> torch.Tensor:
    """Features of a spectrum that falls over four decades, as real extractors' do, with a mean."""
    rotation = torch.linalg.qr(normal(dim, dim, seed=1000 + seed)).Q
    spread = torch.logspace(0, -2, dim, dtype=torch.float64)
    return normal(count, dim, seed=seed) * spread @ rotation.T + 0.5 * rotation[0]
