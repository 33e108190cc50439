"""Features in chunks: the same whoever makes them, kept, and added to."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from gan.config import Conditioning, ConfigError, GeneratorConfig
from gan.networks import build_generator
from pipeline.card import SnapshotCard
from pipeline.dataset import ShardSet
from pipeline.experiment import ClusterConfig
from pipeline.extraction import CHUNK, Eye, extract, forgeries, forget, here, images_at, reals
from pipeline.hands import hands
from pipeline.shards import ShardReader, write_shards
from pipeline.snapshot import Snapshot
from tests.conftest import striped_images

PIXELS = Eye(extractor="pixels")


def never(function, jobs):
    assert not jobs, "a chunk that is there was made again"
    return iter(())


@pytest.fixture
def shards(tmp_path):
    return write_shards(
        str(tmp_path / "data"), striped_images(1250), classes=("left", "right"), origin={}
    )


def snapshot_for(shards, *, conditioning: Conditioning = "projection", seed=0) -> Snapshot:
    config = GeneratorConfig(width=8, latent_dim=4)
    module = build_generator(config, conditioning=conditioning, sample=shards.sample, seed=seed)
    card = SnapshotCard(
        nimg=0,
        generator=config,
        conditioning=conditioning,
        sample=shards.sample,
        classes=shards.classes,
        scores={},
        lineage={},
    )
    return Snapshot(card, module.eval().requires_grad_(False), f"sha-{seed}-{conditioning}")


def test_features_of_reals_are_those_of_the_images_in_order_and_are_made_once(shards, tmp_path):
    look = reals(PIXELS, shards, storage=str(tmp_path))
    found = extract(look, images=1250, each=here)
    images, labels = ShardReader(shards).take(torch.arange(1250).numpy())
    assert torch.equal(found.vectors, images.flatten(1).float() / 127.5 - 1)
    assert labels is not None
    assert found.labels is not None
    assert torch.equal(found.labels, labels)
    again = extract(look, images=1250, each=never)
    assert torch.equal(again.vectors, found.vectors)


def test_more_forgeries_begin_with_the_ones_before_and_a_damaged_chunk_is_made_again(
    shards, tmp_path
):
    model = snapshot_for(shards)
    look = forgeries(model, PIXELS, shards, stream="test", seed=1, storage=str(tmp_path))
    few = extract(look, images=150, each=here)
    assert len(few) == 150
    assert torch.equal(extract(look, images=CHUNK, each=never).vectors[:150], few.vectors)
    more = extract(look, images=CHUNK + 1, each=here)
    assert torch.equal(more.vectors[:150], few.vectors)
    pixels = images_at(look, [3, 150]).flatten(1).float() / 127.5 - 1
    assert torch.equal(pixels, more.vectors[[3, 150]])
    (tmp_path / "_features" / look.folder.rsplit("/", 1)[1] / "000000000.safetensors").write_bytes(
        b"cut"
    )
    assert torch.equal(extract(look, images=CHUNK + 1, each=here).vectors, more.vectors)
    forget(look)
    assert not list((tmp_path / "_features").glob("*/*.safetensors"))


def test_labels_are_drawn_from_the_data_and_are_the_same_for_both_contestants(shards, tmp_path):
    looks = [
        forgeries(
            snapshot_for(shards, seed=seed), PIXELS, shards, stream="t", seed=1,
            storage=str(tmp_path),
        )
        for seed in (0, 1)
    ]  # fmt: skip
    one, other = (extract(look, images=CHUNK, each=here) for look in looks)
    assert one.labels is not None
    assert other.labels is not None
    assert torch.equal(one.labels, other.labels)
    assert abs(one.labels.float().mean() - 0.5) < 4 * 0.5 / CHUNK**0.5
    assert not torch.equal(one.vectors, other.vectors)
    free = forgeries(
        snapshot_for(shards, conditioning="none"), PIXELS, shards, stream="t", seed=1,
        storage=str(tmp_path),
    )  # fmt: skip
    assert extract(free, images=100, each=here).labels is None


def test_a_generator_that_draws_no_numbers_is_refused(shards, tmp_path):
    model = snapshot_for(shards)
    for parameter in model.module.parameters():
        parameter.fill_(torch.nan)
    look = forgeries(model, PIXELS, shards, stream="t", seed=1, storage=str(tmp_path))
    with pytest.raises(ConfigError, match="no numbers; it has diverged"):
        extract(look, images=100, each=here)


def on_ray(shards: ShardSet, storage: str) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    told = []
    with hands(ClusterConfig(workers=2)) as each:
        far = reals(PIXELS, shards, storage=storage)
        found = extract(far, images=1250, each=each, progress=lambda *p: told.append(p))
    return found.vectors, told


@pytest.mark.slow
def test_rays_workers_make_the_same_features_as_this_process(shards, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    look = reals(PIXELS, shards, storage=str(tmp_path / "here"))
    alone = extract(look, images=1250, each=here)
    # In a process of its own: a second cluster that one process joins cannot start actors.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        vectors, told = pool.submit(on_ray, shards, str(tmp_path / "ray")).result()
    assert torch.equal(vectors, alone.vectors)
    assert told == [(0, 2), (1, 2), (2, 2)]
