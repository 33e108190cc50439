"""Storage: published whole or not at all."""

from __future__ import annotations

import pytest

from gan.config import ConfigError
from pipeline.storage import Folder, open_storage


def test_what_is_written_is_read_listed_and_deleted(tmp_path):
    storage = Folder(tmp_path)
    storage.write("a/b/one", b"1")
    storage.write("a/two", b"2")
    storage.write("a/two", b"22")
    assert storage.read("a/two") == b"22"
    assert storage.names() == ["a/b/one", "a/two"]
    assert storage.names("a/b") == ["a/b/one"]
    storage.delete("a/b/one")
    storage.delete("a/b/one")
    assert not storage.exists("a/b/one")
    assert not (tmp_path / "a" / "b").exists()


def test_a_writer_that_fails_leaves_the_old_bytes_and_no_litter(tmp_path):
    storage = Folder(tmp_path)
    storage.write("name", b"old")

    def fail() -> None:
        with storage.publishing("name") as part:
            part.write_bytes(b"half of the n")
            assert storage.read("name") == b"old"
            assert storage.names() == ["name"]
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert storage.read("name") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["name"]


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd"])
def test_names_stay_inside_the_root(tmp_path, name):
    with pytest.raises(ValueError, match="outside"):
        Folder(tmp_path).read(name)


def test_kinds_that_are_not_supported_are_refused():
    with pytest.raises(ConfigError, match="gs://bucket/runs"):
        open_storage("gs://bucket/runs")
