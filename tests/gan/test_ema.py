"""The moving average against its definition."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from gan.ema import Average, decay


@pytest.mark.parametrize("batch_size", [1, 16, 1000])
def test_after_one_half_life_the_past_weighs_one_half_whatever_the_batch(batch_size):
    player = nn.Linear(1, 1)
    nn.init.zeros_(player.weight)
    average = Average(player)
    nn.init.ones_(player.weight)
    for _ in range(10_000 // batch_size):
        average.update(decay(10, ramp_up=0, new_images=batch_size, nimg=10**9))
    assert average.module.get_parameter("weight").item() == pytest.approx(0.5, abs=1e-3)


def test_the_half_life_ramps_up_with_the_images_seen():
    kept = partial(decay, 10, ramp_up=0.05)
    assert kept(new_images=50, nimg=1000) == pytest.approx(0.5)  # half-life 50 after 1000
    assert kept(new_images=10_000, nimg=10**6) == pytest.approx(0.5)
    assert kept(new_images=64, nimg=0) == 0


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
