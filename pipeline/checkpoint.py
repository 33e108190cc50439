"""Game state to files and back: safetensors for the tensors, JSON for the rest, checksummed,
published whole.

A checkpoint is a folder named after its nimg. Its manifest is published last, so a checkpoint
either is whole or does not exist; the old ones go only after the new one stands.
"""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import safetensors
import safetensors.torch
from torch import Tensor

from pipeline.storage import Storage

log = logging.getLogger(__name__)

SCHEMA = 1
FOLDER = "checkpoints"
TENSORS = "game.safetensors"
MANIFEST = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that resuming needs."""

    nimg: int
    state: dict[str, Tensor]


def latest_checkpoint(storage: Storage) -> Checkpoint | None:
    """The newest checkpoint that is whole and undamaged; damaged ones are passed over, and named
    in the log.
    """
    for manifest in sorted(_manifests(storage), reverse=True):
        try:
            return _read(storage, manifest)
        except (FileNotFoundError, ValueError, KeyError, safetensors.SafetensorError) as error:
            log.warning(
                "passed over the damaged checkpoint %s: %s", f"{storage.uri}/{manifest}", error
            )
    return None


def checkpoint_at(storage: Storage, nimg: int) -> Checkpoint:
    """The checkpoint at `nimg`, for a rank that was told which; raises where it is not whole."""
    return _read(storage, f"{FOLDER}/{nimg:012d}/{MANIFEST}")


def copy_checkpoint(source: Storage, target: Storage, nimg: int) -> None:
    """Publishes the checkpoint of `source` at `nimg` in `target` as well."""
    for name in (TENSORS, MANIFEST):
        path = f"{FOLDER}/{nimg:012d}/{name}"
        target.write(path, source.read(path))


def all_nimg(storage: Storage) -> list[int]:
    """The nimg of every checkpoint, by their names alone, oldest first."""
    return sorted(int(name.split("/")[-2]) for name in _manifests(storage))


def newest_nimg(storage: Storage) -> int:
    """The nimg of the newest checkpoint, by its name alone; 0 where there is none."""
    return max(all_nimg(storage), default=0)


def _manifests(storage: Storage) -> list[str]:
    return [name for name in storage.names(FOLDER) if name.endswith(f"/{MANIFEST}")]


def _read(storage: Storage, manifest: str) -> Checkpoint:
    record = json.loads(storage.read(manifest))
    if record["schema"] != SCHEMA:
        raise ValueError(f"its schema is {record['schema']}, not {SCHEMA}")
    data = storage.read(manifest.replace(MANIFEST, TENSORS))
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise ValueError(f"the sha256 of {TENSORS} differs from the manifest")
    return Checkpoint(record["nimg"], safetensors.torch.load(data))


class CheckpointWriter:
    """Publishes checkpoints in the background, one at a time, and keeps the newest `keep`."""

    def __init__(self, storage: Storage, *, keep: int):
        self._storage, self._keep = storage, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def publish(self, nimg: int, state: dict[str, Tensor]) -> None:
        """Takes a copy of `state` at once and publishes it while the game goes on.

        Waits for the one before; raises its error where that failed.
        """
        self.wait()
        copy = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
        self._last = self._thread.submit(self._write, nimg, copy)

    def wait(self) -> None:
        """Returns once everything published stands on storage; raises what went wrong there."""
        if self._last is not None:
            self._last.result()
            self._last = None

    def _write(self, nimg: int, state: dict[str, Tensor]) -> None:
        folder = f"{FOLDER}/{nimg:012d}"
        data = safetensors.torch.save({name: value.contiguous() for name, value in state.items()})
        self._storage.write(f"{folder}/{TENSORS}", data)
        record = {"schema": SCHEMA, "nimg": nimg, "sha256": hashlib.sha256(data).hexdigest()}
        self._storage.write(f"{folder}/{MANIFEST}", json.dumps(record).encode())
        for old in sorted(_manifests(self._storage))[: -self._keep]:
            self._storage.delete(old)  # the manifest first: what is left is no checkpoint any more
            self._storage.delete(old.replace(MANIFEST, TENSORS))
