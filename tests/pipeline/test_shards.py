"""Shards: what goes in comes out, and damage is named."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from gan.config import ConfigError
from pipeline import shards as shards_module
from pipeline.codecs import decode, encode
from pipeline.dataset import open_shards
from pipeline.folder import Folder
from pipeline.parts import finished_parts, publish_parts, write_part
from pipeline.shards import ShardReader, ShardWriter, verify_shards, write_shards
from tests.conftest import striped_images


@pytest.mark.parametrize("times", [1, 30])
def test_images_and_labels_come_back_in_any_order_across_shards(tmp_path, monkeypatch, times):
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 64 * 3 * 7)  # 7 images a shard
    images = list(striped_images(30, channels=3))
    made = write_shards(str(tmp_path), images, classes=("a", "b"), origin={})
    assert [s.num_images for s in made.shards] == [7, 7, 7, 7, 2]
    numbers = np.array([29, 0, 6, 7, 13, 14, 0] * times)
    pixels, labels = ShardReader(open_shards(str(tmp_path))).take(numbers)
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(pixels[row].permute(1, 2, 0).numpy(), images[number][0])
        assert labels is not None
        assert labels[row] == images[number][1]


@pytest.mark.parametrize("number", [-1, 100, 2**40])
def test_a_number_outside_the_set_is_an_error_and_no_other_memory(stripes, number):
    reader = ShardReader(stripes)
    with pytest.raises(IndexError, match="100 images has no such image"):
        reader.take(np.array([0, number]))


def test_a_shard_of_other_length_than_its_index_says_is_refused(tmp_path):
    made = write_shards(str(tmp_path), striped_images(30), classes=("a", "b"), origin={})
    index = tmp_path / "index.json"
    said = json.loads(index.read_text())
    said["num_images"] = said["shards"][0]["num_images"] = 31
    index.write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=r"30 images, and its index says 31; prepare the data"):
        ShardReader(open_shards(made.uri)).take(np.array([30]))


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_lossless_encodings_keep_every_pixel_and_the_digest(tmp_path, encoding, channels):
    noise = np.random.RandomState(0).randint(0, 256, (20, 8, 8, channels), np.uint8)
    images = [(image, number % 2) for number, image in enumerate(noise)]
    raw = write_shards(str(tmp_path / "raw"), images, classes=("a", "b"), origin={})
    made = write_shards(
        str(tmp_path / "enc"), images, classes=("a", "b"), origin={}, encoding=encoding
    )
    assert made.digest == raw.digest
    assert open_shards(made.uri) == made
    table = pa.ipc.open_file((tmp_path / "enc" / made.shards[0].file).read_bytes()).read_all()
    for row, (image, _) in enumerate(images):
        decoded = decode(table["image"][row].as_py(), shape=image.shape)
        np.testing.assert_array_equal(decoded, image)


def test_the_digest_of_a_lossy_set_is_that_of_what_readers_see(tmp_path):
    noise = np.random.RandomState(0).randint(0, 256, (4, 8, 8, 3), np.uint8)
    pairs = [(image, 0) for image in noise]
    lossy = write_shards(str(tmp_path / "jpeg"), pairs, classes=("a",), origin={}, encoding="jpeg")
    seen = [decode(encode(image, "jpeg"), shape=image.shape) for image in noise]
    assert (np.stack(seen) != noise).any()
    raw = write_shards(str(tmp_path / "raw"), [(i, 0) for i in seen], classes=("a",), origin={})
    assert lossy.digest == raw.digest


def test_a_writer_goes_on_after_the_shards_that_were_finished(tmp_path):
    images = list(striped_images(25))
    pixels = np.stack([image for image, _ in images])
    labels = [label for _, label in images]

    def writer(name: str, plan: str = "same") -> ShardWriter:
        return ShardWriter(str(tmp_path / name), plan={"by": plan}, shard_bytes=64 * 7)

    def write(writer: ShardWriter, start: int, stop: int) -> None:
        for number in range(start, stop):
            writer.add(pixels[number : number + 1], labels[number : number + 1], note=number)

    whole = writer("whole")
    write(whole, 0, 25)
    expected = whole.finish(classes=("a", "b"), origin={})
    write(writer("killed"), 0, 17)  # and never finishes
    assert writer("killed", plan="another").num_images == 0
    again = writer("killed")
    assert (again.num_images, again.notes) == (14, [6, 13])
    write(again, 14, 25)
    made = again.finish(classes=("a", "b"), origin={})
    assert (made.digest, made.shards) == (expected.digest, expected.shards)
    assert [s.class_counts for s in made.shards] == [(4, 3), (3, 4), (4, 3), (2, 2)]
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == sorted(
        ["index.json", *(s.file for s in made.shards)]
    )


def test_parts_are_written_in_any_order_by_anyone(tmp_path):
    images = list(striped_images(20))
    pixels, labels = np.stack([i for i, _ in images]), np.array([n for _, n in images])
    expected = write_shards(str(tmp_path / "one"), images, classes=("a", "b"), origin={})
    storage = Folder(tmp_path / "parts")
    for number in (3, 0, 2, 1):
        piece = slice(number * 5, number * 5 + 5)
        write_part(storage, number, pixels[piece], labels[piece], plan=1)
    parts = finished_parts(storage, plan=1)
    made = publish_parts(storage, [parts[n] for n in sorted(parts)], classes=("a", "b"), origin={})
    assert made.digest == expected.digest


def test_sets_of_the_first_schema_are_read(tmp_path):
    made = write_shards(str(tmp_path), striped_images(10), classes=("a", "b"), origin={})
    index = json.loads((tmp_path / "index.json").read_text())
    index["schema"] = 1
    del index["encoding"]
    index["shards"] = [
        {key: shard[key] for key in ("file", "num_images", "sha256")} for shard in index["shards"]
    ]
    (tmp_path / "index.json").write_text(json.dumps(index))
    old = open_shards(str(tmp_path))
    assert old.digest == made.digest
    assert old.shards[0].num_bytes is None
    assert ShardReader(old).labels(np.arange(4)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("text", ["[]", "{", '{"schema": 3}', '{"schema": 2}', "\x00"])
def test_an_index_that_cannot_be_read_is_a_mistake_of_the_user(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ConfigError, match=r"index.json is"):
        open_shards(str(tmp_path))
