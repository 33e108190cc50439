"""Zips and tars of images, read in place: nothing is extracted, and hostile members refused."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import stat
import tarfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gan.config import ConfigError
from pipeline.sources.files import Shelf, is_image
from pipeline.sources.source import MAX_FILE_BYTES, BadImage, Refused, Scratch

ARCHIVES = {".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz"}
MAX_RATIO = 200  # of a member's size to its packed size; images are packed already
RATIO_FREE_BYTES = 2**20  # smaller members may be packed as they like
FREE_BYTES = 2**28  # smaller tars may be packed as they like
MAX_MEMBERS = 2**22


@dataclass(frozen=True, slots=True)
class ZipShelf:
    """Members of a zip."""

    path: str

    def read(self, name: str) -> bytes:
        try:
            return _zip(self.path).read(name)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise BadImage(f"damaged in the archive: {error}") from None
        except Exception as error:
            if isinstance(error, (OSError, MemoryError)):
                raise
            raise BadImage(f"damaged in the archive: {error}") from None  # zlib's, lzma's


@dataclass(frozen=True, slots=True)
class TarShelf:
    """Members of an unpacked tar, by where their bytes begin and how many they are."""

    path: str
    places: dict[str, tuple[int, int]]

    def read(self, name: str) -> bytes:
        start, count = self.places[name]
        with open(self.path, "rb") as file:
            file.seek(start)
            data = file.read(count)
        if len(data) < count:
            raise BadImage(f"the archive is cut short: {len(data)} of {count} bytes")
        return data


@dataclass(frozen=True, slots=True)
class ManyShelves:
    """Several archives as one: names are ARCHIVE/MEMBER."""

    shelves: dict[str, Shelf]

    def read(self, name: str) -> bytes:
        archive, _, member = name.partition("/")
        return self.shelves[archive].read(member)


@lru_cache(64)
def _zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)  # stays open between images, with its directory; see `close`


def close() -> None:
    """Lets go of the zips that this process has open."""
    _zip.cache_clear()


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive's images, its other files that may hold labels, and what of it is refused."""

    shelf: Shelf
    names: tuple[str, ...]
    others: tuple[str, ...]
    refused: tuple[Refused, ...]
    stamp: str


def open_archive(path: Path, scratch: Scratch, *, shown: str) -> Archive | None:
    """The archive at `path`, or None where it is none.

    A packed tar is unpacked to `scratch` as one piece, because it cannot be entered in the middle;
    its members are not.

    Raises ConfigError for a damaged one and for a decompression bomb.
    """
    with open(path, "rb") as file:
        head = file.read(6)
    if head[:2] == b"PK":
        return _open_zip(path, shown)
    opener = next(
        (
            opener
            for magic, opener in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma))
            if head.startswith(magic)
        ),
        None,
    )
    if opener is not None:
        try:
            with opener.open(path, "rb") as stream:
                start = stream.read(512)
                if start[257:262] != b"ustar":
                    return None
            with opener.open(path, "rb") as stream:
                most = max(FREE_BYTES, MAX_RATIO * path.stat().st_size)
                path = scratch.unpack(stream, ".tar", max_bytes=most, what=shown)
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError([f"{shown} is damaged: {error}"]) from None
        except Exception as error:
            if isinstance(error, (OSError, MemoryError, ConfigError)):
                raise
            raise ConfigError([f"{shown} is damaged: {error}"]) from None
    elif not _is_tar(path):
        return None
    return _open_tar(path, shown)


def _is_tar(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(262)[257:262] == b"ustar"


def outside(name: str) -> str | None:
    """Why an archive's member of this name is refused, or None where it is not."""
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "absolute name"
    if ".." in name.replace("\\", "/").split("/"):
        return "name with '..'"
    return None


def _open_zip(path: Path, shown: str) -> Archive:
    refused: list[Refused] = []
    names: dict[str, None] = {}
    others, marks = [], hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ConfigError([f"{shown} is a damaged zip: {error}"]) from None
    _check_count(len(members), shown)
    for member in members:
        name = member.orig_filename
        if member.is_dir() and not outside(name):
            continue
        marks.update(f"{name} {member.CRC} {member.file_size}\n".encode())
        reason = outside(name) or _refusal_of_zip(member)
        if reason is None and name in names:
            reason = "another member of the same name"
        if reason is not None:
            refused.append(Refused(name, reason))
        elif is_image(name):
            names[name] = None
        else:
            others.append(name)
    shelf = ZipShelf(str(path))
    return Archive(shelf, tuple(sorted(names)), tuple(others), tuple(refused), marks.hexdigest())


def _refusal_of_zip(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind and not stat.S_ISREG(kind):
        return "a link or device"
    if member.flag_bits & 1:
        return "encrypted"
    if member.file_size > MAX_FILE_BYTES:
        return f"{member.file_size} bytes are over {MAX_FILE_BYTES}"
    if member.file_size > RATIO_FREE_BYTES and member.file_size > MAX_RATIO * max(
        1, member.compress_size
    ):
        return f"packed over {MAX_RATIO}:1, as decompression bombs are"
    return None


def _open_tar(path: Path, shown: str) -> Archive:
    refused: list[Refused] = []
    places: dict[str, tuple[int, int]] = {}
    others: list[str] = []
    marks, count = hashlib.sha256(), 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                count += 1
                _check_count(count, shown)
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                if member.isdir() and not outside(member.name):
                    continue
                name = member.name
                marks.update(f"{name} {member.offset_data} {member.size}\n".encode())
                reason = outside(name) or _refusal_of_tar(member)
                if reason is not None:
                    refused.append(Refused(name, reason))
                elif is_image(name) or _may_hold_labels(name):
                    if name in places:
                        refused.append(Refused(name, "another member of the same name"))
                        continue
                    places[name] = (member.offset_data, member.size)
                    if not is_image(name):
                        others.append(name)
                else:
                    others.append(name)
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{shown} is a damaged tar: {error}"]) from None
    names = tuple(sorted(name for name in places if is_image(name)))
    marks.update(f"{path.stat().st_size}".encode())
    shelf = TarShelf(str(path), places)
    return Archive(shelf, names, tuple(others), tuple(refused), marks.hexdigest())


def _refusal_of_tar(member: tarfile.TarInfo) -> str | None:
    if not member.isreg():
        return "a link or device"
    if member.sparse is not None:
        return "a sparse file"
    if member.size > MAX_FILE_BYTES:
        return f"{member.size} bytes are over {MAX_FILE_BYTES}"
    return None


def _check_count(count: int, shown: str) -> None:
    if count > MAX_MEMBERS:
        raise ConfigError(
            [f"{shown} has more than {MAX_MEMBERS} members; split it into several archives"]
        )


def is_archive(name: str) -> bool:
    """Whether a file of this name is taken for an archive."""
    return any(name.lower().endswith(suffix) for suffix in ARCHIVES)


def _may_hold_labels(name: str) -> bool:
    return name.rpartition("/")[2] in ("dataset.json",)
