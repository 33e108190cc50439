"""Shape annotations of gan/ are checked in every test; and data that many tests share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports gan.
install_import_hook("gan", "typecheck.checker")

from gan.config import (
    DiscriminatorConfig,
    GameConfig,
    GeneratorConfig,
    ObjectiveConfig,
    TurnsConfig,
)
from pipeline.dataset import ShardSet
from pipeline.shards import write_shards
from tests.elsewhere import register
from tests.pipeline.servers import BUCKET, S3, Missing, make_bucket, or_skip, s3

register()  # before any backward pass

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores: their threads would wait for each other's, spinning, and small
    # games would take four times as long.
    torch.set_num_threads(1)

# A busy machine is no failure: no test is held to a time for one example.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


LONGEST_FIRST = ("test_two_nodes.py", "test_chaos.py", "test_submit.py")  # minutes each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes begin first: at the end the others would wait for them alone."""
    last = len(LONGEST_FIRST)
    rank = {name: at for at, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, last))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test draws the same random numbers, whatever ran before it in its process."""
    torch.manual_seed(0)


def small_game(**changes) -> GameConfig:
    """A dcgan for 8 px images that plays a turn in milliseconds, R1 and R2 in every turn."""
    sections = {
        "generator": GeneratorConfig(width=8, latent_dim=4, lr=1e-3),
        "discriminator": DiscriminatorConfig(width=8, lr=1e-3),
        "objective": ObjectiveConfig(),
        "turns": TurnsConfig(batch_size=8, total_kimg=1),
    }
    return GameConfig(**(sections | changes))


def striped_images(count: int, *, size: int = 8, channels: int = 1, classes: int = 2):
    """Images that differ by number: the label's stripe, and the number in the first pixels."""
    for number in range(count):
        image = np.zeros((size, size, channels), np.uint8)
        label = number % classes
        image[:, label * 3 + 1] = 200
        image[0, 0], image[0, 1] = number // 256, number % 256
        yield image, label


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_users(tmp_path_factory) -> None:
    """What is kept in ~/.cache would carry over from one run of the tests to the next."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def stripes(tmp_path_factory) -> ShardSet:
    """A prepared set of 100 labelled 8 px images."""
    folder = tmp_path_factory.mktemp("stripes")
    return write_shards(
        str(folder), striped_images(100), classes=("left", "right"), origin={"source": "stripes"}
    )


@pytest.fixture(scope="session")
def ceph() -> Iterator[S3]:
    """A real S3 store for the whole run, with BUCKET in it. (After a kill of its gateway another
    bucket takes half a minute to make; objects do not.)
    """
    with ExitStack() as running:
        try:
            store = running.enter_context(s3())
        except Missing as error:
            or_skip(error)
        make_bucket(store, BUCKET)
        yield store


@pytest.fixture
def s3_uri(ceph, monkeypatch) -> str:
    """A place of its own in BUCKET; the store's variables are set."""
    for name, value in ceph.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
