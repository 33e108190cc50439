"""Sources of images, pixel by pixel against hand-made ones."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from gan.config import ConfigError
from pipeline.prepare import prepare
from pipeline.shards import ShardReader


def pixels_of(shards, number: int = 0) -> np.ndarray:
    images, _ = ShardReader(shards).take(np.array([number]))
    return images[0].permute(1, 2, 0).numpy()


def write_idx(path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def folder(tmp_path):
    """Two classes of 16 px colour squares."""
    for name, colour in (("cats", (200, 10, 30)), ("dogs", (5, 100, 250))):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (16, 16), colour).save(tmp_path / "in" / name / f"{number}.png")
    return tmp_path / "in"


def test_the_embedded_digits_are_all_there(tmp_path):
    shards = prepare("embedded:digits", str(tmp_path / "d"))
    assert (shards.num_images, shards.channels, shards.image_size_px) == (10_000, 1, 32)
    images, labels = ShardReader(shards).take(np.arange(10_000))
    counts = [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]  # as LeCun's test set has them
    assert labels is not None
    assert labels.bincount().tolist() == counts
    assert int(images[:, :, :2].max()) == 0  # 28 px in the middle of 32
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_the_embedded_faces_are_all_there(tmp_path):
    shards = prepare("embedded:faces", str(tmp_path / "f"))
    assert (shards.num_images, shards.channels, shards.image_size_px) == (2048, 3, 16)
    assert shards.num_classes == 4


def test_sub_folders_are_classes(tmp_path, folder):
    shards = prepare(str(folder), str(tmp_path / "out"), keep_order=True)
    assert shards.classes == ("cats", "dogs")
    assert (pixels_of(shards, 0) == (200, 10, 30)).all()
    assert (pixels_of(shards, 3) == (5, 100, 250)).all()
    assert ShardReader(shards).labels(np.arange(4)).tolist() == [0, 0, 1, 1]


def test_a_flat_folder_has_no_labels(tmp_path, folder):
    shards = prepare(str(folder / "cats"), str(tmp_path / "out"))
    assert shards.num_classes == 0
    assert ShardReader(shards).take(np.array([0]))[1] is None


def test_an_idx_pair_is_read_zipped_or_not(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (6, 5, 5))
    write_idx(tmp_path / "x-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "x-labels-idx1-ubyte.gz", np.array([0, 1, 2, 2, 1, 0]))
    source = str(tmp_path / "x-images-idx3-ubyte.gz")
    paired = prepare(source, str(tmp_path / "paired"), keep_order=True)
    assert (paired.num_classes, paired.image_size_px) == (3, 8)
    np.testing.assert_array_equal(pixels_of(paired, 4)[1:6, 1:6, 0], images[4])
    write_idx(tmp_path / "bare", images)
    assert prepare(str(tmp_path / "bare"), str(tmp_path / "out")).num_classes == 0


def test_unreadable_images_are_named_and_set_aside_and_the_rest_kept(tmp_path, folder):
    (folder / "cats" / "empty.png").write_bytes(b"")
    (folder / "cats" / "text.jpg").write_text("no image")
    whole = (folder / "dogs" / "0.png").read_bytes()
    (folder / "dogs" / "cut.png").write_bytes(whole[: len(whole) // 2])
    shards = prepare(str(folder), str(tmp_path / "out"))
    assert shards.num_images == 4
    names = [bad["image"] for bad in shards.origin["set_aside"]]
    assert names == ["cats/empty.png", "cats/text.jpg", "dogs/cut.png"]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (40, 255), (40, 40, 40)),
        ("I;16", 257 * 100, (100, 100, 100)),
    ],
)
def test_every_pixel_mode_becomes_rgb_by_a_stated_rule(tmp_path, mode, colour, expected):
    (tmp_path / "in").mkdir()
    Image.new(mode, (8, 8), colour).save(tmp_path / "in" / "a.png")
    shards = prepare(str(tmp_path / "in"), str(tmp_path / "out"), channels=3)
    assert (pixels_of(shards) == expected).all()


def test_crop_takes_the_middle_square_and_pad_scales_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 250
    Image.fromarray(wide).save(tmp_path / "in" / "a.png")
    cropped = prepare(str(tmp_path / "in"), str(tmp_path / "crop"), size_px=8)
    assert (pixels_of(cropped) == 250).all()
    padded = prepare(str(tmp_path / "in"), str(tmp_path / "pad"), size_px=32, fit="pad")
    np.testing.assert_array_equal(pixels_of(padded)[12:20, 4:28], wide)
    box = prepare(str(tmp_path / "in"), str(tmp_path / "box"), size_px=4, filter="box")
    assert (pixels_of(box) == 250).all()


def test_exif_orientation_is_honoured(tmp_path):
    (tmp_path / "in").mkdir()
    picture = Image.new("RGB", (8, 8))
    picture.paste((255, 255, 255), (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # shown upside down
    picture.save(tmp_path / "in" / "a.png", exif=exif)
    shards = prepare(str(tmp_path / "in"), str(tmp_path / "out"))
    assert pixels_of(shards)[7, 0, 0] == 255
    assert pixels_of(shards)[0, 0, 0] == 0


def test_a_bomb_is_refused_by_its_header(tmp_path, folder):
    Image.new("1", (9000, 9000)).save(folder / "cats" / "bomb.png")
    shards = prepare(str(folder), str(tmp_path / "out"))
    assert [bad["image"] for bad in shards.origin["set_aside"]] == ["cats/bomb.png"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.write_text("hello"), "not an IDX file"),
        (lambda p: p.mkdir(), "holds no images"),
        (lambda p: p.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 9, 9, 9)), "cut short"),
        (lambda p: p.write_bytes(gzip.compress(b"\0" * 5000)[:20]), "cannot be read"),
    ],
)
def test_sources_that_cannot_be_used_are_refused_with_a_reason(tmp_path, make, words):
    source = tmp_path / "source"
    make(source)
    with pytest.raises(ConfigError, match=words):
        prepare(str(source), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_images_beside_sub_folders_are_refused_because_they_would_have_no_class(tmp_path, folder):
    Image.new("RGB", (8, 8)).save(folder / "stray.png")
    with pytest.raises(ConfigError, match=r"stray\.png"):
        prepare(str(folder), str(tmp_path / "out"))
