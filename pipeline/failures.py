"""Why an attempt failed: which worker was first, what became of it, and whether to try again."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

# What a worker says whose peers are gone; it is never the first cause.
COLLECTIVE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|process ?group|all_?reduce",
    re.IGNORECASE,
)
FINAL = {"StorageError", "FencedError", "ConfigError"}  # another attempt would end the same way
MEMORY = ("MemoryError", "OutOfMemoryError", "OutOfMemory")
LESS_MEMORY = "lower turns.batch_size, or set turns.micro_batch (with turns.reuse_fakes = false)"
MAX_WAIT_SEC = 30


class Kind(IntEnum):
    """What became of a worker; of several that failed, the smallest is nearest to the cause."""

    FINAL = 0  # an error that another attempt would meet again
    MEMORY = 1
    RAISED = 2
    DIED = 3
    FROZEN = 4
    COLLECTIVE = 5  # it lost its peers


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure that came first, in words for people; `rank` is None where no worker failed."""

    rank: int | None
    kind: Kind
    text: str

    def __str__(self) -> str:
        return self.text if self.rank is None else f"worker {self.rank} {self.text}"


def first_failure(error: BaseException) -> Failure:
    """What to blame for the error of a whole attempt."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    if not failures:
        return Failure(None, Kind.DIED, f"Ray Train failed: {_line(error)}")
    each = [_of_worker(rank, failure) for rank, failure in sorted(failures.items())]
    return min(each, key=lambda failure: failure.kind)


def with_stacks(
    failure: Failure, stacks: Mapping[str, str], *, hang_sec: float, folder: str
) -> str:
    """The failure in a line, with what the attempt's files of stacks, kept in `folder`, tell.

    Where Ray only saw a process go, or not answer, they are nearer to the cause and stand alone.
    What a worker raised comes before them, as does the end of Ray Train's controller: workers
    whose controller or whose peer went may crash for that alone.
    """
    seen = hung_or_crashed(stacks)
    if seen is None:
        return str(failure)
    what, kind = seen
    hung = f" for {hang_sec:g} s" if kind is Kind.FROZEN else ""
    told = f"{what}{hung}; its stacks: {', '.join(f'{folder}/{name}' for name in stacks)}"
    cause = failure.rank is None or failure.kind in (Kind.FINAL, Kind.MEMORY, Kind.RAISED)
    return f"{failure}; {told}" if cause else told


def hung_or_crashed(stacks: Mapping[str, str]) -> tuple[str, Kind] | None:
    """What an attempt's files of stacks tell, by name and text: the first crash, else a hang."""
    for name, text in stacks.items():
        crash = re.search(r"^Fatal Python error: (.*)", text, re.MULTILINE)
        if crash:
            return f"worker {_rank(name)} crashed ({crash.group(1)})", Kind.DIED
    ranks = [_rank(name) for name in stacks]
    if not ranks:
        return None
    who = f"worker {ranks[0]}" if len(ranks) == 1 else f"workers {', '.join(ranks)}"
    return f"{who} made no progress", Kind.FROZEN


def _rank(name: str) -> str:
    return name.removesuffix(".txt").rpartition("-")[2]


def _of_worker(rank: int, failure: BaseException) -> Failure:
    name, text = type(failure).__name__, str(failure)
    if name == "WorkerHealthCheckTimeoutError":
        return Failure(rank, Kind.FROZEN, f"does not answer any more{_where(text)}")
    if name == "WorkerHealthCheckFailedError":  # its process is gone; Ray's words for it follow
        if re.search(r"NODE_OUT_OF_MEMORY|running low on memory|OutOfMemoryError", text):
            how = "was killed because the node ran out of memory"
            return Failure(rank, Kind.MEMORY, f"{how}{_where(text)}")
        return Failure(rank, Kind.DIED, f"{_how(text)}{_where(text)}")
    raised = getattr(failure, "_base_exc", failure)  # what it raised, in a wrapper of Ray Train's
    name, text = type(raised).__name__, _line(raised)
    if FINAL & {kind.__name__ for kind in type(raised).__mro__}:
        return Failure(rank, Kind.FINAL, f"failed: {raised}")
    if name in MEMORY:
        return Failure(rank, Kind.MEMORY, f"ran out of memory ({text}); {LESS_MEMORY}")
    if isinstance(raised, RuntimeError) and COLLECTIVE.search(f"{name} {raised}"):
        return Failure(rank, Kind.COLLECTIVE, f"lost its peers ({text})")
    return Failure(rank, Kind.RAISED, f"failed: {name}: {text}")


def _how(text: str) -> str:
    """What became of a process, from Ray's words for it, without Ray's advice."""
    if re.search(r"node (it was on |has )?(died|was terminated|is dead)|node has died", text):
        return "died with its node"
    if "connection error code 2" in text:  # to Ray it is an end of file: nobody kept the status
        return "died without a word, as by SIGKILL or the kernel's out-of-memory killer"
    found = re.search(r"Worker exit detail: (.*?)(?:\. |\n|$)", text)
    return f"died ({found.group(1).strip() if found else _line(text)})"


def _where(text: str) -> str:
    """Which process it was, as far as Ray says."""
    pid, address = re.search(r"\bpid=(\d+)", text), re.search(r"node_ip='([^']+)'", text)
    return f" (process {pid.group(1)} on {address.group(1)})" if pid and address else ""


def _line(error: object) -> str:
    """The last line that says something, which in a traceback is the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


class Budget:
    """Which failures are followed by another attempt, and after how long.

    `max_failures` in a row without progress are; a new checkpoint since the last failure starts
    the count again, so that a long run outlives any number of faults but no crash loop.
    """

    def __init__(self, max_failures: int, *, nimg: int):
        self._max, self._nimg = max_failures, nimg
        self.failures = 0
        self._memory = 0

    @property
    def left(self) -> int:
        """Failures in a row that are still allowed."""
        return self._max - self.failures

    def allows(self, failure: Failure, *, nimg: int) -> bool:
        """Counts a failure with the newest checkpoint at `nimg`: whether to try again."""
        if failure.kind is Kind.FINAL:
            return False
        if nimg != self._nimg:  # a rollback makes it smaller, and is progress too
            self.failures = self._memory = 0
        self._nimg = nimg
        self.failures += 1
        self._memory += failure.kind is Kind.MEMORY
        return self.failures <= self._max and self._memory <= 1

    def wait_sec(self, dice: random.Random) -> float:
        """The pause before the next attempt: 0 after a first failure, then 1, 2, 4, ... seconds,
        with jitter, so that many runs do not all come back at once.
        """
        if self.failures <= 1:
            return 0.0
        return min(MAX_WAIT_SEC, 2 ** (self.failures - 2)) * dice.uniform(0.5, 1.0)
