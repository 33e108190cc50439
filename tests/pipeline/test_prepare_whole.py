"""Preparing as a whole: killed and taken up, on any number of processes, split, without copies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan.config import ConfigError
from pipeline.dataset import ShardSet, open_shards
from pipeline.folder import PART
from pipeline.prepare import HELD_OUT, prepare
from pipeline.shards import ShardReader, verify_shards
from pipeline.storage import StorageError
from pipeline.units import do_unit

ROOT = Path(__file__).parents[2]
COUNT = 400


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """400 images of 16 px in two classes, all of them different."""
    folder = tmp_path_factory.mktemp("source")
    dice = np.random.RandomState(0)
    for number in range(COUNT):
        kind = folder / ("even", "odd")[number % 2]
        kind.mkdir(exist_ok=True)
        pixels = dice.randint(0, 256, (16, 16, 3)).astype(np.uint8)
        pixels[0, 0] = (number % 2, number // 256, number % 256)
        Image.fromarray(pixels).save(kind / f"{number:04d}.png")
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 20 images, so that there are many."""
    monkeypatch.setattr("pipeline.units.UNIT_BYTES", 20 * 16 * 16 * 3)


def numbers_in(shards: ShardSet) -> list[int]:
    """The images of a set by the number that is in their first pixel, in the set's order."""
    images, labels = ShardReader(shards).take(np.arange(shards.num_images))
    first = images[:, :, 0, 0].numpy().astype(int)
    assert labels is not None
    assert (first[:, 0] == labels.numpy()).all()
    return (first[:, 1] * 256 + first[:, 2]).tolist()


def test_every_image_is_there_once_shuffled_with_its_label(source, tmp_path):
    shards = prepare(str(source), str(tmp_path / "out"))
    found = numbers_in(shards)
    assert sorted(found) == list(range(COUNT))
    assert found != sorted(found)
    assert (tmp_path / "out" / "contact.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "even" in page


def test_the_result_does_not_depend_on_the_number_of_processes(source, tmp_path, small_shards):
    one = prepare(str(source), str(tmp_path / "one"), processes=1)
    two = prepare(str(source), str(tmp_path / "two"), processes=2)
    assert one.digest == two.digest
    assert [s.sha256 for s in one.shards] == [s.sha256 for s in two.shards]
    assert len(one.shards) == 20


PROGRAM = """
import pipeline.units, sys
pipeline.units.UNIT_BYTES = 20 * 16 * 16 * 3
from pipeline.prepare import prepare

def halt(done, total):
    if done >= 120:
        print("here", flush=True)
        sys.stdin.read()

prepare(sys.argv[1], sys.argv[2], processes=1, progress=halt)
"""


def test_a_killed_command_goes_on_with_the_shards_that_it_finished(
    source, tmp_path, small_shards, monkeypatch
):
    out = tmp_path / "out"
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(source), str(out)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "here\n"
    started.send_signal(signal.SIGKILL)
    started.communicate()
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("*.arrow")}
    assert len(kept) == 5  # the sixth is fitted, and not written
    with pytest.raises(ConfigError, match="no prepared data"):
        open_shards(str(out))  # half a set is none
    for folder in (out, out / "unfinished"):  # a kill in the middle of a write
        (folder / f".half{PART}").write_bytes(b"half")
    made = []

    def counted(job, unit, tick):
        made.append(unit.number)
        return do_unit(job, unit, tick)

    monkeypatch.setattr("pipeline.workforce.do_unit", counted)
    shards = prepare(str(source), str(out), processes=1)
    assert len(made) == 15
    assert {n: (out / n).stat().st_mtime_ns for n in kept} == kept  # not made again
    assert shards.digest == prepare(str(source), str(tmp_path / "whole"), processes=1).digest
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["contact.png", "index.json", "report.html", "report.json"]
        + [shard.file for shard in shards.shards]
    )


def test_the_same_command_on_a_whole_set_changes_nothing_and_another_is_refused(source, tmp_path):
    first = prepare(str(source), str(tmp_path / "out"))
    before = (tmp_path / "out" / "index.json").stat().st_mtime_ns
    assert prepare(str(source), str(tmp_path / "out")).digest == first.digest
    assert (tmp_path / "out" / "index.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="another"):
        prepare(str(source), str(tmp_path / "out"), size_px=8)
    assert open_shards(str(tmp_path / "out")).digest == first.digest


def test_a_share_is_held_out_by_the_names_of_the_images_alone(source, tmp_path):
    shards = prepare(str(source), str(tmp_path / "out"), held_out=0.25)
    apart = open_shards(str(tmp_path / "out" / HELD_OUT))
    train, held = numbers_in(shards), numbers_in(apart)
    assert sorted(train + held) == list(range(COUNT))
    assert (
        0.25 * COUNT - 30 < len(held) < 0.25 * COUNT + 30
    )  # three standard deviations and a half
    (source / "even" / "one-more.png").write_bytes((source / "odd" / "0001.png").read_bytes())
    try:
        more = prepare(str(source), str(tmp_path / "more"), held_out=0.25)
    finally:
        (source / "even" / "one-more.png").unlink()
    assert more.num_images + open_shards(str(tmp_path / "more" / HELD_OUT)).num_images == COUNT + 1
    sides = [set(held), set(train)]
    reader = ShardReader(open_shards(str(tmp_path / "more" / HELD_OUT)))
    images, _ = reader.take(np.arange(reader.shards.num_images))
    again = images[:, 1, 0, 0].numpy().astype(int) * 256 + images[:, 2, 0, 0].numpy()
    assert set(again.tolist()) - {1} == sides[0] - {1}


def test_exact_copies_are_dropped_across_shards_and_named(source, tmp_path, small_shards):
    copies = {"even/copy-a.png": "even/0000.png", "odd/copy-b.png": "odd/0399.png"}
    for name, of in copies.items():
        with Image.open(source / of) as image:  # equal pixels in other bytes
            image.save(source / name, compress_level=0)
    try:
        all_of_them = prepare(str(source), str(tmp_path / "all"))
        once = prepare(str(source), str(tmp_path / "once"), dedupe=True)
    finally:
        for name in copies:
            (source / name).unlink()
    assert all_of_them.num_images == COUNT + 2
    assert sorted(numbers_in(once)) == list(range(COUNT))
    assert once.origin["num_copies"] == 2
    report = json.loads((tmp_path / "once" / "report.json").read_text())
    assert "copy" in json.dumps(report) or "0000.png" in json.dumps(report)
    verify_shards(once)


@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_lossless_encodings_hold_the_same_pixels_and_the_same_digest(source, tmp_path, encoding):
    raw = prepare(str(source), str(tmp_path / "raw"))
    packed = prepare(str(source), str(tmp_path / encoding), encoding=encoding)
    assert packed.digest == raw.digest
    assert packed.encoding == encoding
    assert numbers_in(packed) == numbers_in(raw)


def test_too_many_bad_images_stop_the_run_with_their_names_and_lose_nothing(source, tmp_path):
    bad = [source / "even" / f"bad-{n}.png" for n in range(3)]
    for path in bad:
        path.write_bytes(b"no image")
    try:
        with pytest.raises(ConfigError, match=r"more than --max-bad allows.*bad-0\.png"):
            prepare(str(source), str(tmp_path / "out"), max_bad="2")
        shards = prepare(str(source), str(tmp_path / "out"), max_bad="3")
    finally:
        for path in bad:
            path.unlink()
    assert shards.num_images == COUNT
    assert sorted(b["image"] for b in shards.origin["set_aside"]) == [
        f"even/{p.name}" for p in bad
    ]


def test_a_full_disk_leaves_the_finished_shards_and_the_same_command_goes_on(
    source, tmp_path, small_shards
):
    out = tmp_path / "out"
    out.mkdir()
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        with pytest.raises(StorageError, match="full"):
            prepare(str(source), str(out), processes=1)
        kept = {p.name for p in out.glob("*.arrow")}
        assert kept
        subprocess.run(["mount", "-o", "remount,size=8m", str(out)], check=True)
        shards = prepare(str(source), str(out), processes=1)
        assert kept <= {shard.file for shard in shards.shards}
        assert sorted(numbers_in(shards)) == list(range(COUNT))
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


@pytest.mark.slow
def test_a_set_is_prepared_from_a_bucket_into_a_bucket(source, tmp_path, s3_uri):
    from pipeline.storage import open_storage

    remote = open_storage(f"{s3_uri}/pictures")
    for path in sorted(source.rglob("*.png"))[:60]:
        remote.write(path.relative_to(source).as_posix(), path.read_bytes())
    shards = prepare(f"{s3_uri}/pictures", f"{s3_uri}/prepared", processes=1)
    assert shards.num_images == 60
    assert open_shards(f"{s3_uri}/prepared").digest == shards.digest
    assert len(set(numbers_in(shards))) == 60
