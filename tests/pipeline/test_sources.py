"""Every kind of source, image by image and label by label, and what is hostile in archives."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gan.config import ConfigError
from pipeline.prepare import prepare
from pipeline.shards import ShardReader
from pipeline.sources.opening import Wanted

SAMPLES = Path(__file__).parent / "samples"


def png(value: int, *, size: int = 8) -> bytes:
    """An image of one grey value."""
    file = io.BytesIO()
    Image.new("L", (size, size), value).save(file, "PNG")
    return file.getvalue()


def contents(shards) -> list[tuple[int, int]]:
    """(value, label) of every image, in order; images are of one value."""
    images, labels = ShardReader(shards).take(np.arange(shards.num_images))
    values = images.numpy().reshape(len(images), -1)
    assert (values == values[:, :1]).all()
    numbers = [-1] * len(images) if labels is None else labels.tolist()
    return list(zip(values[:, 0].tolist(), numbers, strict=True))


def reasons(shards) -> dict[str, str]:
    return {one["image"]: one["reason"] for one in shards.origin["set_aside"]}


def made(tmp_path, source, *, wanted=None, max_bad="0", **settings):
    return prepare(
        str(source), str(tmp_path / "out"), wanted=wanted, max_bad=max_bad, keep_order=True,
        **settings,
    )  # fmt: skip


IMAGES = {"cats/1.png": png(11), "cats/2.png": png(12), "dogs/1.png": png(21)}
EXPECTED = [(11, 0), (12, 0), (21, 1)]


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("wrapper", ["", "my-data/"])
def test_zips_and_tars_are_read_by_their_folders(tmp_path, wrapper):
    members = {wrapper + name: data for name, data in IMAGES.items()} | {"README.txt": b"read"}
    for number, (name, mode) in enumerate(
        [("a.zip", ""), ("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz")]
    ):
        path = tmp_path / name
        write_tar(path, members, mode) if mode else write_zip(path, members)
        shards = prepare(str(path), str(tmp_path / f"out{number}"), keep_order=True)
        assert contents(shards) == EXPECTED
        assert shards.classes == ("cats", "dogs")
        assert not (tmp_path / f"out{number}" / "preparing").exists()


def test_several_archives_of_a_folder_are_one_source(tmp_path):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "0.tar", {"cats/1.png": png(11)})
    write_zip(tmp_path / "in" / "1.zip", {"cats/1.png": png(12), "dogs/1.png": png(21)})
    assert contents(made(tmp_path, tmp_path / "in")) == EXPECTED


def test_hostile_members_are_refused_by_name_and_nothing_is_written_outside(tmp_path):
    good = {"cats/1.png": png(11), "dogs/1.png": png(21)}
    bad = {
        "../up.png": "'..'", "cats/../../up.png": "'..'", "/abs.png": "absolute",
        "C:\\win.png": "absolute",
    }  # fmt: skip
    (tmp_path / "in").mkdir()
    zipped = write_zip(tmp_path / "in" / "a.zip", good | dict.fromkeys(bad, png(1)))
    with zipfile.ZipFile(zipped, "a") as archive:
        link = zipfile.ZipInfo("cats/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    tarred = write_tar(tmp_path / "in" / "a.tar", good | dict.fromkeys(bad, png(1)))
    with tarfile.open(tarred, "a") as archive:
        for name, kind in (
            ("cats/link.png", tarfile.SYMTYPE),
            ("cats/hard.png", tarfile.LNKTYPE),
            ("cats/device.png", tarfile.BLKTYPE),
            ("cats/pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    before = set(tmp_path.rglob("*"))
    for path, links in ((zipped, 1), (tarred, 4)):
        out = tmp_path / f"out-{path.suffix[1:]}"
        shards = prepare(str(path), str(out), keep_order=True, max_bad="100%")
        assert contents(shards) == [(11, 0), (21, 1)]
        found = reasons(shards)
        assert len(found) == len(bad) + links
        for name, words in bad.items():
            assert words in found[name]
        assert sum("link or device" in reason for reason in found.values()) == links
        assert {
            p for p in set(tmp_path.rglob("*")) - before if out not in (p, *p.parents)
        } == set()
        before = set(tmp_path.rglob("*"))


def test_members_packed_as_bombs_are_refused_unread(tmp_path):
    members = {"a.png": png(5), "bomb.png": bytes(64 * 2**20)}  # 1000:1
    shards = made(tmp_path, write_zip(tmp_path / "a.zip", members), max_bad="1")
    assert contents(shards) == [(5, -1)]
    assert "bomb" in reasons(shards)["bomb.png"]


def test_a_tar_that_unpacks_without_end_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.archives.MAX_RATIO", 2)
    monkeypatch.setattr("pipeline.sources.archives.FREE_BYTES", 2**16, raising=True)
    path = write_tar(tmp_path / "a.tar.gz", {"a.png": bytes(2**20)}, "w:gz")
    with pytest.raises(ConfigError, match="decompression bomb"):
        made(tmp_path, path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_archives_are_told(tmp_path, damage):
    path = write_zip(tmp_path / "a.zip", IMAGES)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(ConfigError, match="damaged zip"):
            made(tmp_path, path)
        return
    data[60] ^= 255
    path.write_bytes(data)
    assert list(reasons(made(tmp_path, path, max_bad="1"))) == ["cats/1.png"]


STYLEGAN = {"labels": [["00000/a.png", 1], ["00000/b.png", 0], ["00000/c.png", 1]]}
FLAT = {"00000/a.png": png(1), "00000/b.png": png(2), "00000/c.png": png(3)}


def test_stylegans_zip_has_its_labels_in_dataset_json(tmp_path):
    path = write_zip(tmp_path / "a.zip", FLAT | {"dataset.json": json.dumps(STYLEGAN).encode()})
    assert contents(made(tmp_path, path)) == [(1, 1), (2, 0), (3, 1)]
    bare = write_zip(tmp_path / "b.zip", FLAT | {"dataset.json": b'{"labels": null}'})
    shards = prepare(str(bare), str(tmp_path / "bare"), keep_order=True)
    assert contents(shards) == [(1, -1), (2, -1), (3, -1)]


@pytest.mark.parametrize("kind", ["pairs.json", "object.json", "rows.jsonl", "t.csv", "t.parquet"])
def test_labels_come_from_a_table_of_names(tmp_path, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, value in (("a.png", 1), ("b.png", 2), ("c.png", 3)):
        (folder / name).write_bytes(png(value))
    names, labels = ["a.png", "b.png", "c.png"], ["dog", "cat", "dog"]
    table = tmp_path / kind
    rows = [{"file_name": n, "label": c} for n, c in zip(names, labels, strict=True)]
    if kind == "pairs.json":
        table.write_text(json.dumps({"labels": list(zip(names, labels, strict=True))}))
    elif kind == "object.json":
        table.write_text(json.dumps(dict(zip(names, labels, strict=True))))
    elif kind == "rows.jsonl":
        table.write_text("\n".join(json.dumps(row) for row in rows))
    elif kind == "t.csv":
        with open(table, "w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "label"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    shards = made(tmp_path, folder, wanted=Wanted(labels=str(table)))
    assert shards.classes == ("cat", "dog")
    assert contents(shards) == [(1, 1), (2, 0), (3, 1)]


def test_wrong_labels_are_named_and_their_images_set_aside(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(number))
    table = tmp_path / "labels.json"
    rows = [["0.png", 0], ["1.png", -3], ["2.png", [0.5, 1]], ["3.png", None], ["4.png", 1]]
    table.write_text(json.dumps(rows))
    shards = made(tmp_path, folder, wanted=Wanted(labels=str(table)), max_bad="4")
    assert contents(shards) == [(0, 0), (4, 1)]
    found = reasons(shards)
    assert "-3" in found["1.png"]
    assert "neither a number nor a name" in found["2.png"]
    assert found["3.png"] == found["5.png"] == "no label in labels.json"
    whole = prepare(
        str(folder), str(tmp_path / "bare"), wanted=Wanted(labels="none"), keep_order=True
    )
    assert whole.num_images == 6


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_what_the_datasets_library_writes_is_read_with_its_class_names(tmp_path, kind):
    shards = made(tmp_path, SAMPLES / f"huggingface.{kind}")
    assert shards.classes == ("red", "green", "blue")
    images, labels = ShardReader(shards).take(np.arange(12))
    assert labels is not None
    for number in range(12):
        expected = np.zeros((3, 8, 8))
        expected[number % 3] = 100 + number
        np.testing.assert_array_equal(images[number].numpy(), expected)
        assert labels[number] == number % 3


def write_table(path: Path, values, labels, **options) -> None:
    table = pa.table({"image": [{"bytes": v, "path": None} for v in values], "label": labels})
    pq.write_table(table, path, **options)


def test_splits_of_a_data_set_are_never_mixed_silently(tmp_path):
    data = tmp_path / "in" / "data"
    data.mkdir(parents=True)
    write_table(data / "train-00000-of-00002.parquet", [png(1), png(2)], [0, 1])
    write_table(data / "train-00001-of-00002.parquet", [png(3)], [1], row_group_size=1)
    write_table(data / "test-00000-of-00001.parquet", [png(4)], [0])
    with pytest.raises(ConfigError, match=r"test, train.*--split"):
        made(tmp_path, tmp_path / "in")
    shards = made(tmp_path, tmp_path / "in", wanted=Wanted(split="train"))
    assert contents(shards) == [(1, 0), (2, 1), (3, 1)]


def test_rows_without_bytes_are_named_and_compressed_arrow_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.tables.COPIED_BYTES", 64)
    table = pa.table({"picture": [png(1), None, png(3)], "kind": ["b", "a", "a"]})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema, options=options) as writer:
        writer.write_table(table)
    wanted = Wanted(label_column="kind")
    shards = made(tmp_path, tmp_path / "a.arrow", wanted=wanted, max_bad="1")
    assert contents(shards) == [(1, 1), (3, 0)]
    assert reasons(shards) == {"a.arrow#1": "no image bytes in its row"}


@pytest.mark.parametrize("layout", ["nhw", "nhwc", "nchw", "fortran", "uint16"])
def test_numpy_arrays_of_every_layout(tmp_path, layout):
    plain = np.arange(1, 4, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    array = {
        "nhw": plain,
        "nhwc": plain[..., None].repeat(3, 3),
        "nchw": plain[:, None].repeat(3, 1),
        "fortran": np.asfortranarray(plain),
        "uint16": plain.astype(np.uint16) * 257,
    }[layout]
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "y.npy", [2, 0, 1])
    shards = made(tmp_path, tmp_path / "x.npy", wanted=Wanted(labels=str(tmp_path / "y.npy")))
    assert contents(shards) == [(1, 2), (2, 0), (3, 1)]
    assert shards.channels == (3 if layout in ("nhwc", "nchw") else 1)


def test_an_npz_says_which_arrays_it_means_or_is_asked_for(tmp_path):
    plain = np.arange(1, 4, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    np.savez_compressed(tmp_path / "a.npz", images=plain, labels=[0, 1, 1])
    assert contents(made(tmp_path, tmp_path / "a.npz")) == [(1, 0), (2, 1), (3, 1)]
    np.savez(tmp_path / "b.npz", x_train=plain, x_test=plain, y_train=[1, 1, 0], y_test=[0, 0, 0])
    with pytest.raises(ConfigError, match=r"x_train.*--image-column"):
        prepare(str(tmp_path / "b.npz"), str(tmp_path / "b"))
    wanted = Wanted(image_column="x_train", label_column="y_train")
    shards = prepare(str(tmp_path / "b.npz"), str(tmp_path / "b"), wanted=wanted, keep_order=True)
    assert contents(shards) == [(1, 1), (2, 1), (3, 0)]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.npy", np.zeros((3, 8, 8), np.float32), "whose range is not stated"),
        ("a.npy", np.zeros((3, 8), np.uint8), "its shape is"),
        ("a.npy", np.array([{}]), "Python objects"),
        ("a.parquet", pa.table({"x": [1]}), "--image-column"),
        ("a.zip", {"a.txt": b""}, "holds no images"),
    ],
)
def test_what_holds_no_images_is_refused_with_what_it_holds(tmp_path, name, data, words):
    path = tmp_path / name
    if isinstance(data, np.ndarray):
        np.save(path, data)
    elif isinstance(data, dict):
        write_zip(path, data)
    else:
        pq.write_table(data, path)
    with pytest.raises(ConfigError, match=words):
        made(tmp_path, path)
    assert not (tmp_path / "out").exists()


def test_a_destination_within_the_source_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match="outside SRC"):
        prepare(str(tmp_path / "in"), str(tmp_path / "in" / "out"))


def test_links_that_people_put_into_their_folder_are_followed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").write_bytes(png(7))
    os.symlink(tmp_path / "a.png", tmp_path / "in" / "b.png")
    assert contents(made(tmp_path, tmp_path / "in")) == [(7, -1)]
