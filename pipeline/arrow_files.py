"""Arrow and Parquet files: the shapes that shards have on disk, opened by any Arrow reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True, slots=True)
class RawShard:
    """A shard of raw pixels, mapped into memory: uint8 (n, h, w, c), and int64 labels (n,)."""

    images: np.ndarray
    labels: np.ndarray


def raw_shard(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The Arrow file of uint8 images (n, h, w, c) as fixed-size binary, and labels (n,)."""
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(images[0].nbytes),
        len(images),
        [None, pa.py_buffer(np.ascontiguousarray(images))],
    )
    return _arrow_file(column, labels, shape=images.shape[1:], encoding="raw")


def encoded_shard(
    images: Sequence[bytes], labels: np.ndarray, *, shape: tuple[int, ...], encoding: str
) -> bytes:
    """The Arrow file of encoded images, which all decode to `shape` (h, w, c), and labels (n,)."""
    return _arrow_file(pa.array(images, pa.binary()), labels, shape=shape, encoding=encoding)


def _arrow_file(
    images: pa.Array, labels: np.ndarray, *, shape: tuple[int, ...], encoding: str
) -> bytes:
    # One record batch: what is mapped lies in one piece. The metadata is for other readers.
    said = {"shape": " ".join(map(str, shape)), "encoding": encoding}
    batch = pa.record_batch({"image": images, "label": pa.array(labels, pa.int64())})
    batch = batch.replace_schema_metadata(said)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def open_raw(path: Path, shape: tuple[int, ...]) -> RawShard:
    """Maps a shard of raw pixels, images of `shape` (h, w, c).

    Raises OSError where it cannot be opened and ValueError where it holds something else.
    """
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    column = batch.column("image")
    if column.type != pa.binary(int(np.prod(shape))):
        raise ValueError(f"{path} holds no raw images of {shape}")
    pixels = np.frombuffer(column.buffers()[1], np.uint8)
    return RawShard(pixels.reshape(len(batch), *shape), batch.column("label").to_numpy())


def read_encoded(data: bytes) -> tuple[list[bytes], np.ndarray]:
    """The encoded images of a shard, and their labels (n,) int64."""
    batch = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)
    return batch.column("image").to_pylist(), batch.column("label").to_numpy()


def read_table(path: Any) -> dict[str, Any]:
    """The columns of a Parquet file: fixed-size binary as uint8 (n, bytes), others as Python
    lists.
    """
    table = pq.read_table(path)
    columns: dict[str, Any] = {}
    for name in table.column_names:
        values = table.column(name).to_pylist()
        is_bytes = pa.types.is_fixed_size_binary(table.schema.field(name).type)
        columns[name] = (
            np.array([np.frombuffer(v, np.uint8) for v in values]) if is_bytes else values
        )
    return columns
