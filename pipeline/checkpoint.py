"""Game state to files and back: safetensors for the tensors, JSON for the rest, checksummed,
published whole.

A checkpoint is a folder named after its nimg: tensors, named after their content, and a record
that names them. The record is published last, after the tensors were read back, so a checkpoint
either is whole or does not exist; old ones go only after the new one stands.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import safetensors

from pipeline.behind import Behind
from pipeline.storage import Storage

if TYPE_CHECKING:  # who looks at runs loads no tensors, and does not wait for torch
    from torch import Tensor

log = logging.getLogger(__name__)

SCHEMA = 2
FOLDER = "checkpoints"
RECORD = "checkpoint.json"
DAMAGE = (FileNotFoundError, ValueError, KeyError, TypeError, safetensors.SafetensorError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of the game at a checkpoint, beside its state.

    An anchor comes with a game that was judged and found well, at fixed counts of images, so that
    a rollback goes where it would in any replay; the others come by the clock.
    """

    nimg: int
    anchor: bool = True
    score: float | None = None  # of the chosen metric, where G_ema was judged at this nimg
    rollbacks: int = 0  # how often the game had been rolled back before
    experiment_digest: str = ""
    data_digest: str = ""
    token: int = 0  # of the writer's lease
    ticked: int = -1  # the last tick that its writer had journalled before it


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that resuming needs."""

    nimg: int
    state: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Record:
    """A checkpoint's JSON: where its tensors are, and what they must be."""

    standing: Standing
    tensors: str
    sha256: str

    @property
    def folder(self) -> str:
        return _folder(self.standing.nimg)


def latest_checkpoint(
    storage: Storage,
    *,
    up_to: int | None = None,
    abandoned: Callable[[Standing], bool] = lambda standing: False,
) -> Checkpoint | None:
    """The newest checkpoint that is whole and undamaged, of those at or before nimg `up_to` that
    are not `abandoned`.

    Damaged ones are passed over, and named in the log.
    """
    for nimg in reversed(all_nimg(storage)):
        if up_to is None or nimg <= up_to:
            try:
                if not abandoned(_record(storage, nimg).standing):
                    return checkpoint_at(storage, nimg)
            except DAMAGE as error:
                log.warning("passed over the damaged checkpoint %s: %s", _folder(nimg), error)
    return None


def checkpoint_at(storage: Storage, nimg: int) -> Checkpoint:
    """The checkpoint at `nimg`; raises one of DAMAGE where it is not whole."""
    record = _record(storage, nimg)
    data = storage.read(f"{record.folder}/{record.tensors}")
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise ValueError(f"the sha256 of {record.tensors} differs from the record")
    from safetensors.torch import load

    return Checkpoint(nimg, load(data))


def standings(storage: Storage) -> list[Standing]:
    """What every checkpoint's record says, oldest first; unreadable records are passed over."""
    found = []
    for nimg in all_nimg(storage):
        try:
            found.append(_record(storage, nimg).standing)
        except DAMAGE as error:
            log.warning("passed over the damaged checkpoint %s: %s", _folder(nimg), error)
    return found


def copy_checkpoint(source: Storage, target: Storage, nimg: int) -> None:
    """Publishes the checkpoint of `source` at `nimg` in `target` as well."""
    record = _record(source, nimg)
    for name in (f"{record.folder}/{record.tensors}", f"{record.folder}/{RECORD}"):
        target.write(name, source.read(name))


def all_nimg(storage: Storage) -> list[int]:
    """The nimg of every checkpoint, by their names alone, oldest first."""
    names = (name for name in storage.names(FOLDER) if name.endswith(f"/{RECORD}"))
    return sorted(int(name.split("/")[-2]) for name in names)


def newest_nimg(storage: Storage) -> int:
    """The nimg of the newest checkpoint, by its name alone; 0 where there is none."""
    return max(all_nimg(storage), default=0)


def clear_up(storage: Storage, *, abandoned: Callable[[Standing], bool]) -> list[str]:
    """Deletes what is no checkpoint, and those that count no longer; says what, for people.

    For the run's one writer, before it begins: tensors whose record never came, a record or
    tensors that are damaged, and checkpoints of a game that was given up. Tensors are read from
    the newest back to the first that are whole; the game goes on from these.
    """
    said, keep, whole = [], set(), False
    for nimg in reversed(all_nimg(storage)):
        try:
            record = _record(storage, nimg)
            if abandoned(record.standing):
                continue
            if not whole:
                checkpoint_at(storage, nimg)
        except DAMAGE as error:
            said.append(f"the checkpoint at {nimg} images is damaged ({error}) and was removed")
            continue
        whole = True
        keep |= {f"{record.folder}/{RECORD}", f"{record.folder}/{record.tensors}"}
    # Records first: what is left is no checkpoint any more.
    names = sorted(storage.names(FOLDER), key=lambda name: not name.endswith(f"/{RECORD}"))
    for name in names:
        if name not in keep:
            storage.delete(name)
    return said


def _folder(nimg: int) -> str:
    return f"{FOLDER}/{nimg:012d}"


def _record(storage: Storage, nimg: int) -> _Record:
    record = json.loads(storage.read(f"{_folder(nimg)}/{RECORD}"))
    if record["schema"] != SCHEMA:
        raise ValueError(f"its schema is {record['schema']}, not {SCHEMA}")
    return _Record(Standing(**record["standing"]), record["tensors"], record["sha256"])


class CheckpointWriter:
    """Publishes checkpoints behind the game's back, one at a time.

    Kept are the newest `keep`, the newest anchor, and the anchor with the best score. `fence` is
    asked before a record is published; it raises where another writer has taken over.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        keep: int,
        behind: Behind | None = None,
        fence: Callable[[], None] = lambda: None,
    ):
        self._storage, self._keep, self._fence = storage, keep, fence
        self._behind = behind or Behind("checkpoint")
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether the last one is still on its way."""
        return self._last is not None and not self._last.done()

    def publish(self, standing: Standing, state: dict[str, Tensor]) -> None:
        """Takes a copy of `state` at once and publishes it while the game goes on.

        Waits for the one before; raises its error where that failed.
        """
        self.wait()
        copy = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
        self._last = self._behind.do(lambda: self._write(standing, copy))

    def wait(self) -> None:
        """Returns once everything published stands on storage; raises what went wrong there."""
        if self._last is not None:
            self._last.result()
        self._behind.wait()

    def _write(self, standing: Standing, state: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        data = save({name: value.contiguous() for name, value in state.items()})
        sha256 = hashlib.sha256(data).hexdigest()
        folder, tensors = _folder(standing.nimg), f"game-{sha256[:16]}.safetensors"
        self._storage.write(f"{folder}/{tensors}", data)
        if hashlib.sha256(self._storage.read(f"{folder}/{tensors}")).hexdigest() != sha256:
            raise OSError(f"{self._storage.uri}/{folder}/{tensors} was not kept as it was written")
        self._fence()
        record: dict[str, Any] = {"schema": SCHEMA, "standing": asdict(standing)}
        record |= {"tensors": tensors, "sha256": sha256}
        self._storage.write(f"{folder}/{RECORD}", json.dumps(record, indent=1).encode())
        self._retire({f"{folder}/{RECORD}", f"{folder}/{tensors}"})

    def _retire(self, new: set[str]) -> None:
        kept = retained(standings(self._storage), keep=self._keep)
        folders = {_folder(nimg) for nimg in kept} - {name.rpartition("/")[0] for name in new}
        for name in self._storage.names(FOLDER):  # a record sorts before its tensors
            if name.rpartition("/")[0] not in folders and name not in new:
                self._storage.delete(name)


def retained(all_of_them: Sequence[Standing], *, keep: int) -> set[int]:
    """The nimg of the checkpoints that stay."""
    nimgs = {standing.nimg for standing in all_of_them[-keep:]}
    anchors = [standing for standing in all_of_them if standing.anchor]
    nimgs |= {standing.nimg for standing in anchors[-1:]}
    judged = [standing for standing in anchors if standing.score is not None]
    if judged:
        nimgs.add(min(judged, key=lambda standing: (standing.score, standing.nimg)).nimg)
    return nimgs
