"""Scores: the same at any world size, and lower for better generators."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gan.features import pixels
from pipeline.dataset import open_shards
from pipeline.judge import Judge
from pipeline.protocol import count_label, metric_name
from pipeline.storage import Folder
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
    assert (score.protocol.num_images, score.protocol.num_reference) == (230, 100)
    return score.metrics


def test_scores_name_their_extractor_and_count():
    look = pixels((1, 8, 8))
    assert metric_name("fd", look, images=5000) == "score/fd_pixels_5k"
    assert metric_name("fd_corrected", look, images=99) == "score/fd_corrected_pixels_99"
    true_inception = dataclasses.replace(look, name="inception", fid=True)
    assert metric_name("fd", true_inception, images=50_000) == "score/fid_50k"
    assert metric_name("kid", true_inception, images=50_000) == "score/kid_inception_50k"
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


def test_reals_are_measured_once_for_a_data_set_and_extractor(stripes, tmp_path):
    """With the kept moments in place the reals are not read again, and the score is the same."""
    cache = Folder(tmp_path)
    judges = [Judge(pixels((1, 8, 8)), stripes, cache=cache) for _ in range(2)]
    first, second = (
        judge.score(Noise(0.1), latent_dim=64, conditioning="none", images=50) for judge in judges
    )
    assert first == second
    (kept,) = cache.names()
    (tmp_path / kept).write_bytes(b"damaged")
    again = Judge(pixels((1, 8, 8)), stripes, cache=cache)
    assert again.score(Noise(0.1), latent_dim=64, conditioning="none", images=50) == first


def test_scores_of_another_reference_extractor_or_count_have_another_protocol(stripes):
    judge = Judge(pixels((1, 8, 8)), stripes)
    scores = [
        judge.score(Noise(0.1), latent_dim=64, conditioning=labels, images=count)
        for labels, count in (("none", 50), ("projection", 50), ("none", 60))
    ]
    assert len({score.protocol.sha256 for score in scores}) == 3


def test_a_generator_that_is_further_off_scores_worse(stripes):
    near, far = score_on_this_rank(stripes.uri, -0.8), score_on_this_rank(stripes.uri, 0.9)
    assert all(near[name] < far[name] for name in near)
