"""Stateless randomness: (seed, stream, index) names every random draw of a run.

There is no generator state to save, so a resumed run draws what the undisturbed one would have
drawn, and any number of workers sees the same game: each draws for the whole global batch and
keeps its slice.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gan.seeds import derive_seed


def generator(seed: int, stream: str, index: int) -> torch.Generator:
    """A CPU generator for draw number `index` of `stream`.

    On the CPU whatever the device, so that a run's draws do not depend on the hardware.
    """
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))


def latents(
    seed: int, stream: str, index: int, *, batch_size: int, latent_dim: int
) -> Float[Tensor, "n z"]:
    """Standard normal latents of one turn, for the whole global batch."""
    return torch.randn(batch_size, latent_dim, generator=generator(seed, stream, index))


def uniform(
    seed: int, stream: str, index: int, *, shape: tuple[int, ...]
) -> Float[Tensor, "*shape"]:
    """Numbers in [0, 1) of one turn, for the whole global batch."""
    return torch.rand(shape, generator=generator(seed, stream, index))


def normal(
    seed: int, stream: str, index: int, *, shape: tuple[int, ...]
) -> Float[Tensor, "*shape"]:
    """Standard normal numbers of one turn, for the whole global batch."""
    return torch.randn(shape, generator=generator(seed, stream, index))


def public_latents(seeds: Int64[np.ndarray, " n"], *, latent_dim: int) -> Float[Tensor, "n z"]:
    """Latents of public seeds, one image each: the same on every machine and NumPy version.

    NumPy promises that RandomState's streams never change (NEP 19); torch promises no such thing.
    Seeds are in [0, 2**32).
    """
    rows = [np.random.RandomState(seed).standard_normal(latent_dim) for seed in seeds]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def public_labels(seeds: Int64[np.ndarray, " n"], *, num_classes: int) -> Int64[Tensor, " n"]:
    """A class for each public seed, uniform, drawn apart from its latent."""
    rows = [np.random.RandomState([seed, 1]).randint(num_classes) for seed in seeds]
    return torch.tensor(rows, dtype=torch.int64)
