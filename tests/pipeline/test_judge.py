"""Scores: the same at any world size, and lower for better generators."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gan.features import Classifier, pixels
from pipeline.dataset import open_shards
from pipeline.extractors import load_extractor, train_extractor
from pipeline.judge import Judge
from pipeline.prepare import prepare
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


def test_the_shipped_extractor_is_what_its_card_says(tmp_path):
    """The held-out accuracy is measured again, on the digits that the card says were held out."""
    import json
    from importlib.resources import files

    import numpy as np

    from pipeline.extractors import classifier_accuracy
    from pipeline.loader import permute
    from pipeline.shards import ShardReader

    shards = prepare("embedded:digits", str(tmp_path / "digits"))
    extractor = load_extractor("digits", shards.sample.shape)
    card = json.loads((files("pipeline") / "embedded/extractor-digits/extractor.json").read_text())
    assert card["data_digest"] == shards.digest
    assert extractor.sha256 == card["sha256"]
    order = permute(np.arange(10_000), size=10_000, key=0)
    images, labels = ShardReader(shards).take(order[card["num_train"] :])
    assert labels is not None
    classifier = extractor.module.classifier
    assert isinstance(classifier, Classifier)
    accuracy = classifier_accuracy(classifier, images, labels)
    assert accuracy == pytest.approx(card["held_out_accuracy"], abs=0.001)


def test_an_extractor_is_trained_on_ones_own_labels_and_checked_when_loaded(stripes, tmp_path):
    card = train_extractor(stripes, str(tmp_path / "mine"), name="mine", epochs=10, batch_size=10)
    assert card.held_out_accuracy == 1.0  # left stripes from right ones
    extractor = load_extractor(str(tmp_path / "mine"), stripes.sample.shape)
    assert extractor(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 64)
    from gan.config import ConfigError

    with pytest.raises(ConfigError, match="looks at samples of 1 x 8 x 8"):
        load_extractor(str(tmp_path / "mine"), (3, 8, 8))
    (tmp_path / "mine" / "classifier.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="damaged"):
        load_extractor(str(tmp_path / "mine"), stripes.sample.shape)
    with pytest.raises(ConfigError, match=r"evaluate\.extractor must be"):
        load_extractor("inceptoin", stripes.sample.shape)
