"""Work that is done in order behind the game's back, so that storage does not hold the game up."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Behind:
    """One thread that does tasks in the order in which they were given.

    After a task that failed no other is begun: what comes later may rest on it (a checkpoint
    promises the journal up to it). Its error is raised at the next call. `waiting` is called
    every second of a wait.
    """

    def __init__(self, name: str, *, waiting: Callable[[], None] = lambda: None):
        self._waiting = waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._last: Future[None] | None = None
        self._error: BaseException | None = None

    def do(self, task: Callable[[], None]) -> Future[None]:
        """Queues a task; raises the error of an earlier one."""
        self._raise()
        self._last = self._thread.submit(self._run, task)
        return self._last

    def wait(self) -> None:
        """Returns once all is done; raises what went wrong."""
        while not self.done_within(1):
            self._waiting()

    def done_within(self, sec: float) -> bool:
        """Whether all is done, after `sec` at most; raises what went wrong."""
        if self._last is not None:
            try:
                self._last.result(timeout=sec)
            except TimeoutError:
                return False
        self._raise()
        return True

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _run(self, task: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            task()
        except BaseException as error:
            self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
