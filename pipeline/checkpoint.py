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
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import safetensors

from gan.rules import ConfigError
from pipeline.behind import Behind
from pipeline.storage import Storage

if TYPE_CHECKING:  # who looks at runs loads no tensors, and does not wait for torch
    from torch import Tensor

log = logging.getLogger(__name__)

SCHEMA = 2
FOLDER = "checkpoints"
RECORD = "checkpoint.json"


class DamagedError(Exception):
    """What is read is not what was written."""


DAMAGE = (
    FileNotFoundError,
    DamagedError,
    json.JSONDecodeError,
    UnicodeDecodeError,
    KeyError,
    TypeError,
    safetensors.SafetensorError,
)


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
    for _ in range(2):  # what goes wrong on the way seldom does so twice
        data = storage.read(f"{record.folder}/{record.tensors}")
        if hashlib.sha256(data).hexdigest() == record.sha256:
            from safetensors.torch import load

            return Checkpoint(nimg, load(data))
    raise DamagedError(f"the sha256 of {record.tensors} differs from the record")


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
    """Publishes the checkpoint of `source` at `nimg` in `target` as well, as the beginning of
    another game: an anchor, which that game goes back to where it is lost before it has one.
    """
    record = _record(source, nimg)
    tensors = f"{record.folder}/{record.tensors}"
    target.write(tensors, source.read(tensors))
    standing = replace(record.standing, anchor=True, rollbacks=0, token=0)
    _write_record(target, replace(record, standing=standing))


def all_nimg(storage: Storage) -> list[int]:
    """The nimg of every checkpoint, by their names alone, oldest first."""
    names = (name for name in storage.names(FOLDER) if name.endswith(f"/{RECORD}"))
    return sorted(int(name.split("/")[-2]) for name in names)


def newest_nimg(storage: Storage) -> int:
    """The nimg of the newest checkpoint, by its name alone; 0 where there is none."""
    return max(all_nimg(storage), default=0)


def clear_up(
    storage: Storage, *, abandoned: Callable[[Standing], bool]
) -> tuple[Checkpoint | None, list[str]]:
    """Deletes what is no checkpoint, and those that count no longer: what the game goes on from,
    and what was damaged, for people.

    For the run's one writer, before it begins: tensors whose record never came, a record or
    tensors that are damaged, and checkpoints of a game that was given up. Tensors are read from
    the newest back to the first that are whole. Raises ConfigError, and deletes nothing, where
    one is another version's, and where several are there and none can be read: that may be the
    fault of who reads them.
    """
    said, keep, newest = [], set(), None
    for nimg in reversed(all_nimg(storage)):
        try:
            record = _record(storage, nimg)
            if abandoned(record.standing):
                continue
            newest = newest or checkpoint_at(storage, nimg)
        except DAMAGE as error:
            said.append(f"the checkpoint at {nimg} images is damaged ({error}) and was removed")
            continue
        keep |= {f"{record.folder}/{RECORD}", f"{record.folder}/{record.tensors}"}
    if newest is None and len(said) > 1:
        raise ConfigError(
            [
                f"one checkpoint at least must be whole to go on, none of the {len(said)} in "
                f"{storage.uri}/{FOLDER} is when read here; nothing was removed: look whether "
                f"another machine can read them; to begin anew, delete that folder"
            ]
        )
    # Records first: what is left is no checkpoint any more.
    names = sorted(storage.names(FOLDER), key=lambda name: not name.endswith(f"/{RECORD}"))
    for name in names:
        if name not in keep:
            storage.delete(name)
    return newest, said


def _folder(nimg: int) -> str:
    return f"{FOLDER}/{nimg:012d}"


def _record(storage: Storage, nimg: int) -> _Record:
    record = json.loads(storage.read(f"{_folder(nimg)}/{RECORD}"))
    if record["schema"] != SCHEMA:
        raise ConfigError(
            [
                f"{storage.uri}/{_folder(nimg)} must have schema {SCHEMA} to be read, got "
                f"{record['schema']}: go on with the version of Forger that wrote it"
            ]
        )
    return _Record(Standing(**record["standing"]), record["tensors"], record["sha256"])


def _write_record(storage: Storage, record: _Record) -> None:
    told: dict[str, Any] = {"schema": SCHEMA, "standing": asdict(record.standing)}
    told |= {"tensors": record.tensors, "sha256": record.sha256}
    storage.write(f"{record.folder}/{RECORD}", json.dumps(told, indent=1).encode())


class CheckpointWriter:
    """Publishes checkpoints behind the game's back, one at a time.

    Kept are the newest `keep`, the newest anchor, and the anchor with the best score, of those
    that are not `abandoned()`. `fence` is asked before a record is published; it raises where
    another writer has taken over.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        keep: int,
        behind: Behind | None = None,
        fence: Callable[[], None] = lambda: None,
        abandoned: Callable[[], Callable[[Standing], bool]] = lambda: lambda standing: False,
    ):
        self._storage, self._keep, self._fence = storage, keep, fence
        self._abandoned = abandoned
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
        if self.busy:
            self.wait()
        copy = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
        self._last = self._behind.do(lambda: self._write(standing, copy))

    def wait(self) -> None:
        """Returns once everything published stands on storage; raises what went wrong there."""
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
        _write_record(self._storage, _Record(standing, tensors, sha256))
        self._retire(standing.nimg)

    def _retire(self, newest: int) -> None:
        """Deletes checkpoints that count no longer. Only those whose record was read: tensors
        without one may be of a writer that is about to publish it, where this one is late.
        """
        given_up = self._abandoned()
        there = standings(self._storage)
        kept = retained([one for one in there if not given_up(one)], keep=self._keep)
        for nimg in sorted({one.nimg for one in there} - kept - {newest}):
            for name in self._storage.names(_folder(nimg)):  # a record sorts before its tensors
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
