"""Scores: the same at any world size, and lower for better generators."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gan.features import pixels
from pipeline.dataset import open_shards
from pipeline.evaluate import Judge, count_label, metric_name
from tests.ranks import run_ranks


class Noise(nn.Module):
    """A stand-in generator: latents to 8 px noise of some brightness."""

    def __init__(self, brightness: float):
        super().__init__()
        self.brightness = nn.Parameter(torch.tensor(brightness))

    def forward(self, z, labels):
        return (z.view(-1, 1, 8, 8) * 0.3 + self.brightness).clamp(-1, 1)


def score_on_this_rank(uri: str, brightness: float) -> dict[str, float]:
    shards = open_shards(uri)
    judge = Judge(pixels(shards.sample.shape), shards)
    score = judge.score(Noise(brightness), latent_dim=64, conditioning="none", images=230)
    assert (score.num_images, score.num_reference) == (230, 100)
    return score.metrics


def test_scores_name_their_extractor_and_count():
    assert metric_name("fd", extractor="digits", images=5000) == "score/fd_digits_5k"
    assert [count_label(n) for n in (999, 1000, 2500, 50_000)] == ["999", "1k", "2500", "50k"]


@pytest.mark.slow
def test_a_score_is_the_same_at_any_world_size(stripes):
    alone = score_on_this_rank(stripes.uri, 0.1)
    assert alone.keys() == {"score/fd_pixels_230", "score/kid_pixels_230"}
    for metrics in run_ranks(
        score_on_this_rank, 3, stripes.uri, 0.1
    ):  # 230 images and 100 reals, uneven
        for name, value in metrics.items():
            assert value == pytest.approx(alone[name], rel=1e-9)


def test_a_generator_that_is_further_off_scores_worse(stripes):
    near, far = score_on_this_rank(stripes.uri, -0.8), score_on_this_rank(stripes.uri, 0.9)
    assert all(near[name] < far[name] for name in near)
