"""The moving average against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gan.config import EmaConfig, Steps
from gan.ema import Average, decay


@pytest.mark.parametrize("batch_size", [1, 16, 1000])
def test_after_one_half_life_the_past_weighs_one_half_whatever_the_batch(batch_size):
    config = EmaConfig(half_life_kimg=10, ramp_up=0)
    player = nn.Linear(1, 1)
    nn.init.zeros_(player.weight)
    average = Average(player)
    nn.init.ones_(player.weight)
    for _ in range(10_000 // batch_size):
        average.update(decay(config, new_images=batch_size, nimg=10**9))
    assert average.module.get_parameter("weight").item() == pytest.approx(0.5, abs=1e-3)


def test_the_half_life_ramps_up_with_the_images_seen():
    config = EmaConfig(half_life_kimg=10, ramp_up=0.05)
    assert decay(config, new_images=50, nimg=1000) == pytest.approx(0.5)  # half-life 50 after 1000
    assert decay(config, new_images=10_000, nimg=10**6) == pytest.approx(0.5)
    assert decay(config, new_images=64, nimg=0) == 0


def test_a_half_life_in_steps_is_the_one_where_the_round_began():
    config = EmaConfig(half_life_kimg=Steps(at_kimg=(0, 1), values=(10, 20)), ramp_up=0)
    before = decay(config, new_images=10_000, nimg=1064, round_nimg=999)
    after = decay(config, new_images=20_000, nimg=1064, round_nimg=1000)
    assert (before, after) == (0.5, 0.5)


def test_buffers_are_copied_not_averaged():
    player = nn.BatchNorm1d(2)
    average = Average(player)
    player(torch.randn(8, 2) + 5)
    average.update(0.9)
    assert torch.equal(
        average.module.get_buffer("running_mean"), player.get_buffer("running_mean")
    )
    assert average.module.num_batches_tracked == 1
    assert not average.module.training
    assert not any(p.requires_grad for p in average.module.parameters())
