"""Finds out what a source of images is, and opens it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gan.config import ConfigError
from pipeline.sources import archives, arrays, files, tables
from pipeline.sources.archives import Archive, ManyShelves
from pipeline.sources.embedded import EMBEDDED, open_embedded
from pipeline.sources.files import FilesSource, StorageShelf
from pipeline.sources.labels import (
    NO_LABELS,
    Labels,
    labels_of_folders,
    labels_of_table,
    read_table_of_labels,
)
from pipeline.sources.source import Refused, Scratch, Source, stamp_of_files
from pipeline.storage import Storage, open_storage

NONE = "none"  # --labels none
STYLEGAN = "dataset.json"
SPLIT_WORDS = {"train", "training", "test", "validation", "valid", "val", "dev", "eval"}
TABLES = (".parquet", ".arrow", ".feather")
ARRAYS = (".npy", ".npz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of a source is wanted: where its labels are, and which columns and split."""

    labels: str | None = None  # a file, 'none', or None: whatever the source itself says
    name_column: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    split: str | None = None


@contextmanager
def opened(source: str, wanted: Wanted, *, scratch: Scratch) -> Iterator[Source]:
    """The source within the block. Raises ConfigError where it is nothing that can be read."""
    kind, _, name = source.partition(":")
    try:
        with ExitStack() as held:
            if kind == "embedded":
                yield open_embedded(name, scratch)
            else:
                storage, names, single = _found(source)
                yield _opened(source, storage, names, single, wanted, scratch, held)
    finally:
        for module in (archives, arrays, tables):
            module.close()
        scratch.clear()


def _found(source: str) -> tuple[Storage, list[str], bool]:
    """The storage, the names in it, and whether SRC named a single one."""
    if "://" not in source:
        path = Path(source).expanduser()
        if path.is_file():
            return open_storage(path.parent), [path.name], True
        if path.is_dir():
            storage = open_storage(path)
            return storage, storage.names(), False
    else:
        storage = open_storage(source)
        if names := storage.names():
            return storage, names, False
        parent, _, last = source.rstrip("/").rpartition("/")
        if parent.count("/") > 2 or (parent.count("/") == 2 and not parent.endswith("/")):
            storage = open_storage(parent)
            if storage.exists(last):
                return storage, [last], True
    raise ConfigError(
        [
            f"SRC must be images (a folder, an archive, an array or a table of them, here or at "
            f"s3://) or one of {', '.join('embedded:' + name for name in EMBEDDED)}; "
            f"{source!r} does not exist"
        ]
    )


def _opened(
    source: str,
    storage: Storage,
    names: list[str],
    single: bool,
    wanted: Wanted,
    scratch: Scratch,
    held: ExitStack,
) -> Source:
    def here(name: str) -> Path:
        return held.enter_context(storage.local(name))

    shown = f"{storage.uri}/{names[0]}" if single else storage.uri
    if single:
        return _single(storage.uri, names[0], here(names[0]), wanted, scratch, shown)
    if any(files.is_image(name) for name in names):
        return _folder(storage, names, wanted)
    for suffixes, opener in (
        (TABLES, _tables),
        (tuple(archives.ARCHIVES), _archives),
    ):
        found = [name for name in names if name.lower().endswith(suffixes)]
        if found:
            found = _of_split(found, wanted.split, shown) if suffixes is TABLES else found
            paths = [here(name) for name in found]
            return opener(paths, found, wanted, scratch, shown, storage.uri)
    alone = [name for name in names if name.lower().endswith(ARRAYS) or "images-idx3" in name]
    alone = [name for name in alone if wanted.labels is None or not wanted.labels.endswith(name)]
    if len(alone) == 1:
        pair = arrays.labels_name(alone[0])
        if pair != alone[0] and pair in names and wanted.labels is None:
            wanted = Wanted(labels=str(here(pair)))
        path = here(alone[0])
        return _single(storage.uri, alone[0], path, wanted, scratch, f"{shown}/{alone[0]}")
    if alone:
        raise ConfigError([f"{shown} holds {', '.join(alone)}; name one of them as SRC"])
    raise ConfigError(
        [
            f"{shown} holds no images ({', '.join(sorted(files.SUFFIXES))}) and no archives, "
            f"arrays or tables of them, neither do its sub-folders"
        ]
    )


def _single(
    uri: str, name: str, path: Path, wanted: Wanted, scratch: Scratch, shown: str
) -> Source:
    with open(path, "rb") as file:
        head = file.read(8)
    stamp = _stamp([name], [path], uri)
    outer = None if wanted.labels in (None, NONE) else Path(str(wanted.labels))
    if tables.is_table(head):
        return _tables([path], [name], wanted, scratch, shown, uri)
    if head[:6] == b"\x93NUMPY":
        return arrays.open_npy(path, outer, scratch, shown=shown, stamp=stamp)
    if head[:2] == b"PK" and name.lower().endswith(".npz"):
        return arrays.open_npz(
            path,
            outer,
            scratch,
            shown=shown,
            image_name=wanted.image_column,
            label_name=wanted.label_column,
            stamp=stamp,
        )
    if archives.is_archive(name) or head[:2] == b"PK":
        archive = archives.open_archive(path, scratch, shown=shown)
        if archive is not None:
            return _archive(archive, wanted, shown, stamp)
    beside = None if wanted.labels == NONE else outer or arrays.idx_labels_beside(path)
    return arrays.open_idx(path, beside, scratch, shown=shown, stamp=stamp)


def _folder(storage: Storage, names: list[str], wanted: Wanted) -> Source:
    images = tuple(name for name in names if files.is_image(name))
    where = storage.uri
    inner = storage.read(STYLEGAN) if STYLEGAN in names and wanted.labels is None else None
    labels = _labels(images, images, inner, wanted, where)
    stamp = files.stamp_of_names(where, images)
    return FilesSource(where, StorageShelf(where), images, labels, (), stamp)


def _archive(archive: Archive, wanted: Wanted, shown: str, stamp: str) -> Source:
    if not archive.names and not archive.refused:
        raise ConfigError([f"{shown} holds no images ({', '.join(sorted(files.SUFFIXES))})"])
    inner = None
    if wanted.labels is None:
        found = next((n for n in archive.others if PurePosixPath(n).name == STYLEGAN), None)
        inner = None if found is None else archive.shelf.read(found)
    bare = files.without_wrappers(archive.names)
    labels = _labels(archive.names, bare, inner, wanted, shown)
    mark = f"{archive.stamp} {stamp}"
    return FilesSource(shown, archive.shelf, archive.names, labels, archive.refused, mark, False)


def _archives(
    paths: Sequence[Path],
    names: Sequence[str],
    wanted: Wanted,
    scratch: Scratch,
    shown: str,
    uri: str,
) -> Source:
    shelves, members, bare = {}, [], []
    refused: list[Refused] = []
    stamp = hashlib.sha256(_stamp(names, paths, uri).encode())
    for name, path in zip(names, paths, strict=True):
        archive = archives.open_archive(path, scratch, shown=name)
        if archive is None:
            raise ConfigError([f"{shown}/{name} is neither a zip nor a tar"])
        key = name.replace("/", "_")
        shelves[key] = archive.shelf
        members += [f"{key}/{member}" for member in archive.names]
        bare += archive.names
        refused += [Refused(f"{key}/{r.key}", r.reason) for r in archive.refused]
        stamp.update(archive.stamp.encode())
    labels = _labels(tuple(bare), files.without_wrappers(bare), None, wanted, shown)
    shelf, all_names = ManyShelves(shelves), tuple(members)
    return FilesSource(shown, shelf, all_names, labels, tuple(refused), stamp.hexdigest(), False)


def _tables(
    paths: Sequence[Path],
    names: Sequence[str],
    wanted: Wanted,
    scratch: Scratch,
    shown: str,
    uri: str,
) -> Source:
    if wanted.labels not in (None, NONE):
        raise ConfigError(
            ["a table's labels are one of its columns: give --label-column, or --labels none"]
        )
    return tables.open_tables(
        paths,
        names,
        scratch,
        shown=shown,
        image_column=wanted.image_column,
        label_column=wanted.label_column,
        no_labels=wanted.labels == NONE,
        stamp=_stamp(names, paths, uri),
    )


def _labels(
    keys: Sequence[str],
    bare: Sequence[str],
    inner: bytes | None,
    wanted: Wanted,
    where: str,
) -> Labels:
    """Labels by the table that was asked for, by the source's own one, or by sub-folders."""
    if wanted.labels == NONE:
        return NO_LABELS
    data, file = inner, STYLEGAN
    if wanted.labels is not None:
        file = wanted.labels
        parent, _, last = file.rpartition("/")
        try:
            data = open_storage(parent or ("/" if file.startswith("/") else ".")).read(last)
        except FileNotFoundError:
            raise ConfigError([f"--labels {file} does not exist"]) from None
    if data is None:
        return labels_of_folders(bare, where=where)
    table = read_table_of_labels(
        data, file, name_column=wanted.name_column, label_column=wanted.label_column
    )
    if table is None:
        return NO_LABELS
    if not any(key in table for key in keys):
        keys = bare
    return labels_of_table(keys, table, what=PurePosixPath(file).name)


def _of_split(names: list[str], wanted: str | None, shown: str) -> list[str]:
    """The files of one split, where their names say that there are several."""
    splits = {name: _split(name) for name in names}
    known = sorted({split for split in splits.values() if split is not None})
    if wanted == "all" or (wanted is None and len(known) <= 1):
        return names
    if wanted not in known:
        raise ConfigError(
            [
                f"{shown} holds the splits {', '.join(known) or 'of no name'}; name one with "
                f"--split, or take all of them with --split all"
            ]
        )
    return [name for name in names if splits[name] == wanted]


def _split(name: str) -> str | None:
    """'train' of data/train-00000-of-00002.parquet, train/0000.parquet and train.arrow."""
    path = PurePosixPath(name)
    words = [re.split(r"[-_.]", path.name)[0], *reversed(path.parts[:-1])]
    return next((word for word in words if word in SPLIT_WORDS), None)


def _stamp(names: Sequence[str], paths: Sequence[Path], uri: str) -> str:
    if "://" in uri:  # the paths are of downloads, whose times say nothing
        parts = [f"{n} {p.stat().st_size}" for n, p in zip(names, paths, strict=True)]
    else:
        parts = stamp_of_files(paths)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
