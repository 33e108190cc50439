"""Sources of images, pixel by pixel against hand-made ones."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan.config import ConfigError
from pipeline.fitting import decode, size_of
from pipeline.prepare import prepare
from pipeline.shards import ShardReader
from pipeline.sources.source import BadImage

ROOT = Path(__file__).parents[2]


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
    shards = prepare(str(folder), str(tmp_path / "out"))
    assert shards.classes == ("cats", "dogs")
    colours = [(200, 10, 30), (5, 100, 250)]
    labels = ShardReader(shards).labels(np.arange(4)).tolist()
    assert sorted(labels) == [0, 0, 1, 1]
    for number, label in enumerate(labels):
        assert (pixels_of(shards, number) == colours[label]).all()


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
        ("P", 3, (9, 10, 11)),
    ],
)
def test_every_pixel_mode_becomes_rgb_by_a_stated_rule(tmp_path, mode, colour, expected):
    (tmp_path / "in").mkdir()
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette(range(12))
    image.save(tmp_path / "in" / "a.png")
    shards = prepare(str(tmp_path / "in"), str(tmp_path / "out"), channels=3)
    assert (pixels_of(shards) == expected).all()


def test_cmyk_and_16_bit_tiff_and_the_first_frame_of_an_animation(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "in" / "a.tif")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "lime")]
    frames[0].save(tmp_path / "in" / "b.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((8, 8), 257 * 9, np.uint16)).save(tmp_path / "in" / "c.tif")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "in" / "d.tif")
    Image.fromarray(np.full((8, 8), -5, np.int32)).save(tmp_path / "in" / "e.tif")
    source = str(tmp_path / "in")
    shards = prepare(source, str(tmp_path / "out"), keep_order=True, channels=3)
    assert (pixels_of(shards, 0) == (255, 0, 0)).all()
    assert (pixels_of(shards, 1) == (0, 0, 255)).all()
    assert (pixels_of(shards, 2) == 9).all()
    assert [bad["image"] for bad in shards.origin["set_aside"]] == ["d.tif", "e.tif"]


def test_every_fit_is_what_it_says_and_enlarging_is_counted(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("L", (16, 8), 200).save(tmp_path / "in" / "wide.png")
    Image.new("L", (8, 8), 100).save(tmp_path / "in" / "square.png")

    def made(fit, size_px, **more):
        folder = str(tmp_path / f"{fit}{size_px}")
        return prepare(
            str(tmp_path / "in"), folder, fit=fit, size_px=size_px, keep_order=True, **more
        )

    letterbox = made("letterbox", 8)
    assert pixels_of(letterbox, 1)[:, 0, 0].tolist() == [0, 0, 200, 200, 200, 200, 0, 0]
    assert letterbox.origin["num_enlarged"] == 0
    assert (pixels_of(made("stretch", 8), 1) == 200).all()
    exact = made("exact", 8)
    assert exact.num_images == 1
    assert "--fit exact" in exact.origin["set_aside"][0]["reason"]
    assert made("crop", 16).origin["num_enlarged"] == 2
    assert made("letterbox", 16).origin["num_enlarged"] == 1
    with pytest.raises(ConfigError, match="scales nothing"):
        made("pad", 4, max_bad="0")


def photographs(folder: Path, *sizes: tuple[int, int]) -> str:
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (200, number, 30)).save(folder / f"{number}.jpg")
    return str(folder)


@pytest.mark.parametrize(
    ("sizes", "fit", "advised"),
    [
        ([(50, 37), (80, 60), (50, 33)], None, 32),
        ([(50, 37)] * 3, None, 32),  # of one size, but not square
        ([(100, 100)] * 3, None, 64),  # a broad border would be needed
        ([(28, 28)] * 3, "exact", 16),
        ([(16, 16), (32, 32)], "crop", 16),
        ([(4000, 3000)], "letterbox", 256),
    ],
)
def test_without_a_size_images_of_no_one_playable_size_are_refused_and_nothing_is_written(
    tmp_path, sizes, fit, advised
):
    source = photographs(tmp_path / "in", *sizes)
    with pytest.raises(ConfigError) as caught:
        prepare(source, str(tmp_path / "out"), fit=fit)
    (told,) = caught.value.mistakes
    assert f"say --size {advised}" in told
    for width, height in sizes:
        assert f"{width} x {height} ({sizes.count((width, height))})" in told
    assert not (tmp_path / "out").exists()
    assert prepare(source, str(tmp_path / "out"), size_px=advised).num_images == len(sizes)


def test_a_fit_that_is_said_is_honoured_without_a_size_too(tmp_path):
    source = photographs(tmp_path / "in", (28, 28), (28, 28))
    padded = prepare(source, str(tmp_path / "padded"))
    cropped = prepare(source, str(tmp_path / "cropped"), fit="crop")
    assert (padded.image_size_px, padded.origin["fit"]) == (32, "pad")
    assert (cropped.image_size_px, cropped.origin["fit"]) == (32, "crop")
    assert pixels_of(padded)[0, 0].max() == 0
    assert pixels_of(cropped)[0, 0].max() > 150
    assert cropped.origin["num_enlarged"] == 2


@pytest.mark.parametrize(
    ("size_px", "words"), [(48, "only network = 'mlp'"), (1000, "no network plays"), (64, "")]
)
def test_a_size_that_few_networks_play_is_told(tmp_path, caplog, size_px, words):
    source = photographs(tmp_path / "in", (60, 60))
    prepare(source, str(tmp_path / "out"), size_px=size_px)
    assert words in caplog.text
    assert bool(words) == bool(caplog.text)


def test_headers_tell_the_size_that_decoding_finds(tmp_path):
    picture, exif = Image.new("RGB", (8, 16)), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "plain.png")
    for name, size in (("turned.jpg", (16, 8)), ("plain.png", (8, 16))):
        data = (tmp_path / name).read_bytes()
        assert size_of(data) == decode(data).size == size
    assert size_of(np.zeros((3, 5), np.uint8)) == (5, 3)
    with pytest.raises(BadImage):
        size_of(b"no image")


def test_filters_on_linear_values_keep_the_light_and_on_srgb_the_codes(tmp_path):
    (tmp_path / "in").mkdir()
    half = np.zeros((8, 8), np.uint8)
    half[:, ::2] = 255  # black and white columns
    Image.fromarray(half).save(tmp_path / "in" / "a.png")
    for linear, expected in ((False, 128), (True, 188)):  # sRGB's code of half the light is 188
        shards = prepare(
            str(tmp_path / "in"), str(tmp_path / f"{linear}"), size_px=4, filter="box",
            linear=linear,
        )  # fmt: skip
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


def write_bomb(path, side: int) -> None:
    """A white PNG of one bit a pixel, written row by row: nothing here ever holds its pixels."""
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * ((side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
            file.write(struct.pack(">I", len(body)) + kind + body)
            file.write(struct.pack(">I", zlib.crc32(kind + body)))


def test_bombs_cost_no_memory(tmp_path, folder):
    """Four images of 30,000 px, each 900 MB once decoded, against the same folder without them."""

    def peak_mib(name: str) -> float:
        told = (
            "import resource, sys; from pipeline.prepare import prepare;"
            "print(prepare(*sys.argv[1:], processes=1).num_images);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        done = subprocess.run(
            [sys.executable, "-c", told, folder, tmp_path / name],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        images, peak = done.stdout.split()
        assert images == "4"
        return float(peak)

    without = peak_mib("without")
    for number in range(4):
        write_bomb(folder / "dogs" / f"bomb{number}.png", 30_000)
    assert peak_mib("with") < without + 20


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
