"""What rank 0 hears while a round is played, and all ranks act on between the same two rounds."""

from __future__ import annotations

import logging
import threading
import time
from enum import IntEnum

import torch
import torch.distributed as dist

from gan.world import World
from pipeline.folder import Folder
from pipeline.run import Run
from pipeline.storage import StorageError

log = logging.getLogger(__name__)

LISTEN_SEC = 0.2  # between two looks for a stop request in a folder
LISTEN_REMOTE_SEC = 2.0  # and on an object store, where a look costs a request


class Wish(IntEnum):
    """What is to be done before the next round."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class Listener:
    """Rank 0's ear: a request to stop, and the clock of the checkpoints.

    It looks at storage from a thread of its own, since storage may be slow or away.
    """

    def __init__(self, run: Run, *, every_sec: float):
        self._run, self._every_sec = run, every_sec
        self._pause_sec = LISTEN_SEC if isinstance(run.storage, Folder) else LISTEN_REMOTE_SEC
        self._over, self._stop = threading.Event(), False
        self.saved()
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._thread.start()

    def saved(self) -> None:
        """Starts the checkpoints' clock again."""
        self._saved = time.monotonic()

    @property
    def wish(self) -> Wish:
        """What is due now."""
        if self._stop:
            return Wish.STOP
        due = time.monotonic() - self._saved >= self._every_sec
        return Wish.SAVE if due else Wish.NOTHING

    def close(self) -> None:
        """Stops listening."""
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                self._stop = self._stop or self._run.stop_requested
            except (StorageError, OSError) as error:
                log.warning("cannot look for a stop request: %s", error)
            self._over.wait(self._pause_sec)


class Signals:
    """Brings rank 0's wish to all ranks, at the cost of no wait.

    The wish is sent while a round is played and looked at before the next one, by all ranks at the
    same one: one integer, over a process group of its own on the CPU, so that no device waits for
    it. Every rank must build one, ask before every round, and close it.
    """

    def __init__(self, world: World, listener: Listener | None):
        assert (listener is not None) == world.is_first
        self._world, self._listener = world, listener
        self._group: dist.ProcessGroup | None = None
        if world.size > 1:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        self._sent: tuple[torch.Tensor, dist.Work] | None = None

    def before_round(self) -> Wish:
        """The wish of one round ago (alone: of now). Every rank must call this."""
        if self._group is None:
            assert self._listener is not None
            return self._listener.wish
        heard = self._receive()
        if heard is Wish.NOTHING:
            self._send()
        return heard

    def saved(self) -> None:
        """A checkpoint was taken. Any rank may say so."""
        if self._listener is not None:
            self._listener.saved()

    def close(self) -> None:
        """Takes what is still under way. Every rank must call this, if its game went well."""
        self._receive()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _send(self) -> None:
        flag = torch.tensor([int(self._listener.wish if self._listener else Wish.NOTHING)])
        work = dist.broadcast(flag, src=0, group=self._group, async_op=True)
        assert work is not None
        self._sent = flag, work

    def _receive(self) -> Wish:
        if self._sent is None:
            return Wish.NOTHING
        flag, work = self._sent
        self._sent = None
        work.wait()
        return Wish(int(flag.item()))
