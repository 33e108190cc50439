"""A job's log as it grows: each character once, through connections that are lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from pipeline.job_server import Forgotten, Job, JobServer, Unreachable

QUIET_SEC = 10.0  # without a word, the cluster is asked whether it is still there
RETRY_SEC = 2.0
PATIENCE_SEC = 300.0  # without an answer, watching is given up; the job is not


def follow(
    server: JobServer,
    job_id: str,
    *,
    wrote: Callable[[str], None],
    said: Callable[[str], None],
    seen: int = 0,
) -> Job:
    """Passes the job's log past its first `seen` characters to `wrote`, until the job is over.

    A lost connection is made again and goes on where it was; `said` hears of it. Raises
    Unreachable where the cluster does not answer for PATIENCE_SEC: then nothing is known of the
    job.
    """
    return asyncio.run(_Following(server, job_id, wrote, said, seen).to_the_end())


class _Following:
    def __init__(
        self,
        server: JobServer,
        job_id: str,
        wrote: Callable[[str], None],
        said: Callable[[str], None],
        seen: int,
    ):
        self.server, self.id, self.wrote, self.said = server, job_id, wrote, said
        self.seen = seen
        self._lost_since: float | None = None

    async def to_the_end(self) -> Job:
        """Follows until the job is over."""
        while True:
            try:
                await self._read()
                job = await self._ask()
                if job.over:
                    self._pass_on(await asyncio.to_thread(self.server.log, self.id), 0)
                    return job
            except Forgotten:
                raise
            except Unreachable as error:
                self._lost(error)
            await asyncio.sleep(RETRY_SEC)

    async def _read(self) -> None:
        """One connection, to its end. Raises Unreachable where the cluster is not there."""
        stream = self.server.tail(self.id)
        place = 0
        following = asyncio.ensure_future(anext(stream, None))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=QUIET_SEC)
                if not done:  # nothing to say, or nobody there: a dead line looks the same
                    if (await self._ask()).over:
                        return
                    continue
                text = following.result()
                if text is None:
                    return
                self._pass_on(text, place)
                place += len(text)
                self._found()
                following = asyncio.ensure_future(anext(stream, None))
        finally:
            following.cancel()
            with suppress(BaseException):
                await following
            with suppress(RuntimeError):
                await stream.aclose()

    async def _ask(self) -> Job:
        job = await asyncio.to_thread(self.server.find, self.id)
        self._found()
        if job is None:
            raise Forgotten(
                f"the cluster at {self.server.address} was started anew and knows no {self.id}; "
                f"`forger runs` shows how far its run came"
            )
        return job

    def _pass_on(self, text: str, place: int) -> None:
        """Passes on what of the text, which begins at `place` of the log, is new."""
        if place + len(text) > self.seen:
            self.wrote(text[max(0, self.seen - place) :])
            self.seen = place + len(text)

    def _found(self) -> None:
        if self._lost_since is not None:
            self.said(f"the cluster answers again; {self.id} is followed on")
        self._lost_since = None

    def _lost(self, error: Unreachable) -> None:
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
            self.said(
                f"the cluster does not answer ({error}); the job is not touched, and this "
                f"command waits for up to {PATIENCE_SEC:g} s"
            )
        if now - self._lost_since > PATIENCE_SEC:
            raise Unreachable(
                f"the cluster at {self.server.address} did not answer for {PATIENCE_SEC:g} s; "
                f"what became of {self.id} is not known, and it was not touched"
            )
