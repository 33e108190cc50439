"""Images that are bytes in a column: Parquet and Arrow files, as Hugging Face's data sets are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gan.config import ConfigError
from pipeline.sources.labels import LABEL_COLUMNS, NO_LABELS, Labels, labels_of_values
from pipeline.sources.source import MAX_FILE_BYTES, BadImage, Refused, Scratch

ROWS_AT_ONCE = 128
COPIED_BYTES = 2**20  # allocated by opening a mapped file: more means that it is compressed


@dataclass(frozen=True, slots=True)
class TableSource:
    """Images that are rows of uncompressed Arrow files, which are mapped and not read."""

    name: str
    paths: tuple[str, ...]
    files: tuple[str, ...]  # their names as they were given
    counts: tuple[int, ...]  # rows of each
    image_column: str
    labels: Labels
    stamp: str = ""
    refused: tuple[Refused, ...] = ()
    anywhere: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes

    def __len__(self) -> int:
        return sum(self.counts)

    def _place(self, number: int) -> tuple[int, int]:
        for file, count in enumerate(self.counts):
            if number < count:
                return file, number
            number -= count
        raise IndexError(number)

    def key(self, number: int) -> str:
        file, row = self._place(number)
        return f"{self.files[file]}#{row}"

    def label(self, number: int) -> int:
        if number in self.labels.wrong:
            raise BadImage(self.labels.wrong[number])
        return -1 if self.labels.numbers is None else int(self.labels.numbers[number])

    def load(self, number: int) -> bytes:
        file, row = self._place(number)
        starts, chunks = _chunks(self.paths[file], self.image_column)
        which = int(np.searchsorted(starts, row, side="right")) - 1
        value = chunks[which][row - starts[which]]
        if not value.is_valid:
            raise BadImage("no image bytes in its row")
        data = value.as_buffer()
        if data.size > MAX_FILE_BYTES:
            raise BadImage(f"{data.size} bytes are over {MAX_FILE_BYTES}")
        return data.to_pybytes()


@lru_cache(64)
def _chunks(path: str, column: str) -> tuple[np.ndarray, list[Any]]:
    """First rows and arrays of bytes of a file's record batches."""
    arrays = [
        chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
        for chunk in _table(path).column(column).chunks
    ]
    return np.cumsum([0] + [len(array) for array in arrays])[:-1], arrays


def close() -> None:
    """Lets go of the tables that this process has open."""
    _chunks.cache_clear()


def _table(path: str) -> pa.Table:
    """An Arrow file or stream, mapped."""
    source = pa.memory_map(path)
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def open_tables(
    paths: Sequence[Path],
    files: Sequence[str],
    scratch: Scratch,
    *,
    shown: str,
    image_column: str | None = None,
    label_column: str | None = None,
    no_labels: bool = False,
    stamp: str = "",
) -> TableSource:
    """The rows of Parquet or Arrow files of one schema as images.

    Parquet is unpacked to `scratch` first, because single rows of it cannot be reached. Names of
    classes come from Hugging Face's metadata in the schema. Raises ConfigError.
    """
    schema = _schema(paths[0], files[0])
    image = image_column or _image_column(schema, shown)
    label = None if no_labels else label_column or _label_column(schema)
    for wanted in (image, label):
        if wanted is not None and wanted not in schema.names:
            raise ConfigError(
                [f"{shown} has the columns {', '.join(schema.names)}, and no {wanted!r}"]
            )
    if not _holds_bytes(schema.field(image).type):
        raise ConfigError(
            [f"column {image!r} of {shown} holds {schema.field(image).type}, not encoded images"]
        )
    mapped, counts, values = [], [], []
    for path, file in zip(paths, files, strict=True):
        if _schema(path, file).field(image).type != schema.field(image).type:
            raise ConfigError([f"{file} and {files[0]} differ in column {image!r}"])
        plain, count, labels_here = _mappable(path, file, image, label, scratch)
        mapped.append(str(plain))
        counts.append(count)
        values += labels_here
    labels = NO_LABELS
    if label is not None:
        names = _class_names(schema, label)
        labels = labels_of_values(values, what=f"column {label!r}", classes=names)
    return TableSource(shown, tuple(mapped), tuple(files), tuple(counts), image, labels, stamp)


def is_table(head: bytes) -> bool:
    """Whether a file that begins so is Parquet or Arrow."""
    return head[:4] == b"PAR1" or head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff"


def _schema(path: Path, file: str) -> pa.Schema:
    try:
        if _is_parquet(path):
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as source:
            try:
                return pa.ipc.open_file(source).schema
            except pa.ArrowInvalid:
                source.seek(0)
                return pa.ipc.open_stream(source).schema
    except (pa.ArrowException, OSError) as error:
        raise ConfigError([f"{file} cannot be read as Parquet or Arrow: {error}"]) from None


def _is_parquet(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _mappable(
    path: Path, file: str, image: str, label: str | None, scratch: Scratch
) -> tuple[Path, int, list[Any]]:
    """An uncompressed Arrow file of the images, its number of rows, and the raw labels."""
    columns = [image] if label is None else [image, label]
    try:
        if not _is_parquet(path):
            before = pa.total_allocated_bytes()
            table = _table(str(path))
            if pa.total_allocated_bytes() - before < COPIED_BYTES:
                labels = [] if label is None else table.column(label).to_pylist()
                return path, table.num_rows, labels
            return _unpacked(table.select(columns).to_batches(), label, scratch)
        with pq.ParquetFile(path) as parquet:
            metadata = parquet.metadata
            needed = sum(
                metadata.row_group(g).column(c).total_uncompressed_size
                for g in range(metadata.num_row_groups)
                for c in range(metadata.num_columns)
                if metadata.row_group(g).column(c).path_in_schema.split(".")[0] == image
            )
            scratch.new(".arrow", needed_bytes=needed)
            batches = parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns)
            return _unpacked(batches, label, scratch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the file's
        raise ConfigError([f"{file} is damaged: {error}"]) from None


def _unpacked(
    batches: Iterable[pa.RecordBatch], label: str | None, scratch: Scratch
) -> tuple[Path, int, list[Any]]:
    path, count, labels = scratch.new(".arrow"), 0, []
    writer = None
    try:
        for batch in batches:
            if label is not None:
                labels += batch.column(label).to_pylist()
                batch = batch.drop_columns([label]) if batch.num_columns > 1 else batch
            if writer is None:
                writer = pa.ipc.new_file(str(path), batch.schema)
            writer.write_batch(batch)
            count += batch.num_rows
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise ConfigError(["the table has no rows"])
    return path, count, labels


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_column(schema: pa.Schema, shown: str) -> str:
    able = [field.name for field in schema if _holds_bytes(field.type)]
    usual = [name for name in able if name in ("image", "img", "jpg", "png")]
    if len(able) == 1 or len(usual) == 1:
        return (usual or able)[0]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ConfigError(
        [
            f"{shown} has the columns {columns}; name the one that holds encoded images with "
            f"--image-column"
        ]
    )


def _label_column(schema: pa.Schema) -> str | None:
    return next((name for name in LABEL_COLUMNS if name in schema.names), None)


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """The names of a ClassLabel, from the features that Hugging Face writes into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
