"""Scores: the same at any world size, and lower for better generators."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gan.config import Conditioning
from gan.features import pixels
from pipeline.card import measure_of
from pipeline.dataset import open_shards
from pipeline.folder import Folder
from pipeline.judge import Judge
from pipeline.protocol import count_label, metric_name
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


MEASURES = (
    "fd", "kid", "diversity", "fd_corrected", "fd_error", "kid_error", "diversity_error",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_score_is_the_same_at_any_world_size(stripes, world_size):
    alone = score_on_this_rank(stripes.uri, 0.1)
    assert alone.keys() == {f"score/{name}_pixels_230" for name in MEASURES}
    for metrics in run_ranks(
        score_on_this_rank, world_size, stripes.uri, 0.1
    ):  # 230 images and 100 reals, uneven
        assert metrics.keys() == alone.keys()
        for name, value in metrics.items():
            assert value == pytest.approx(alone[name], rel=1e-9)


def test_the_measure_in_a_name_is_found_whatever_the_extractor_is_called():
    for extractor in ("pixels", "my_judge-2", "corrected"):
        look = dataclasses.replace(pixels((1, 8, 8)), name=extractor)
        for measure in MEASURES:
            assert measure_of(metric_name(measure, look, images=5000)) == measure
    true_inception = dataclasses.replace(pixels((1, 8, 8)), name="inception", fid=True)
    for measure in MEASURES:
        assert measure_of(metric_name(measure, true_inception, images=230)) == measure
    for other in ("speed/img_per_sec", "score/fd_plug_in", "score/precision_pixels_5k"):
        assert measure_of(other) is None


def test_too_few_images_for_groups_are_judged_without_errors(stripes):
    judge = Judge(pixels(stripes.sample.shape), stripes)
    names = [
        {measure_of(name) for name in score.metrics}
        for score in (
            judge.score(Noise(0.1), latent_dim=64, conditioning="none", images=count)
            for count in (19, 20)
        )
    ]
    assert names == [{"fd", "kid", "diversity"}, set(MEASURES)]


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
    settings: list[tuple[Conditioning, int]] = [("none", 50), ("projection", 50), ("none", 60)]
    scores = [
        judge.score(Noise(0.1), latent_dim=64, conditioning=labels, images=count)
        for labels, count in settings
    ]
    assert len({score.protocol.sha256 for score in scores}) == 3


def test_a_generator_that_is_further_off_scores_worse(stripes):
    near, far = score_on_this_rank(stripes.uri, -0.8), score_on_this_rank(stripes.uri, 0.9)
    for measure in ("fd", "fd_corrected", "kid"):
        assert near[f"score/{measure}_pixels_230"] < far[f"score/{measure}_pixels_230"]
