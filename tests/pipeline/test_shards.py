"""Shards: what goes in comes out, and damage is named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from gan.config import ConfigError
from pipeline import shards as shards_module
from pipeline.dataset import open_shards
from pipeline.shards import ShardReader, verify_shards, write_shards
from tests.conftest import striped_images


def test_images_and_labels_come_back_in_any_order_across_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 64 * 3 * 7)  # 7 images a shard
    images = list(striped_images(30, channels=3))
    made = write_shards(str(tmp_path), images, classes=("a", "b"), origin={})
    assert [s.num_images for s in made.shards] == [7, 7, 7, 7, 2]
    numbers = np.array([29, 0, 6, 7, 13, 14, 0])
    pixels, labels = ShardReader(open_shards(str(tmp_path))).take(numbers)
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(pixels[row].permute(1, 2, 0).numpy(), images[number][0])
        assert labels is not None
        assert labels[row] == images[number][1]


def test_the_digest_depends_on_content_not_on_shard_sizes(tmp_path, monkeypatch):
    def digest(name: str, images) -> str:
        return write_shards(str(tmp_path / name), images, classes=("a", "b"), origin={}).digest

    images = list(striped_images(20))
    whole = digest("whole", images)
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 64 * 3)
    assert digest("split", images) == whole
    assert digest("order", images[::-1]) != whole
    assert digest("label", [(image, 1 - label) for image, label in images]) != whole
    assert digest("pixel", [(images[0][0] + 1, 0), *images[1:]]) != whole


def test_any_arrow_reader_opens_a_shard(stripes):
    with pa.memory_map(f"{stripes.uri}/{stripes.shards[0].file}") as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.schema.names == ["image", "label"]
    assert table.num_rows == 100
    assert len(table["image"][0].as_py()) == 64


def test_missing_and_damaged_shards_are_named_together(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 64 * 10)
    made = write_shards(str(tmp_path), striped_images(30), classes=("a", "b"), origin={})
    verify_shards(made)
    (tmp_path / made.shards[0].file).unlink()
    damaged = tmp_path / made.shards[2].file
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        verify_shards(made)
    missing, changed = caught.value.mistakes
    assert made.shards[0].file in missing
    assert "is missing" in missing
    assert made.shards[2].file in changed
    assert "sha256" in changed


def test_a_folder_without_an_index_is_no_data_set(tmp_path):
    def interrupted():
        yield from striped_images(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(str(tmp_path), interrupted(), classes=("a", "b"), origin={})
    with pytest.raises(ConfigError, match="no prepared data"):
        open_shards(str(tmp_path))


def test_another_data_set_is_not_written_over(tmp_path):
    first = write_shards(str(tmp_path), striped_images(10), classes=("a", "b"), origin={})
    again = write_shards(str(tmp_path), striped_images(10), classes=("a", "b"), origin={})
    assert again.digest == first.digest
    with pytest.raises(ConfigError, match="already holds another"):
        write_shards(str(tmp_path), striped_images(11), classes=("a", "b"), origin={})
    verify_shards(open_shards(str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 2
