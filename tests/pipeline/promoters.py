"""Promoters as processes of their own, forked from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Barrier
from typing import TypeVar

from gan.config import ConfigError
from pipeline.backend import Backend
from pipeline.entries import Entry
from pipeline.promotions import Promotion, PromotionLog, Verdict, promote
from tests.pipeline.servers import DEADLINE_SEC

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.pipeline.promoters"])
MAX_REPEATS = 50
T = TypeVar("T")


@dataclass(frozen=True)
class Person:
    """Who is at the keyboard, and where MLflow is for them."""

    uri: str
    name: str
    password: str

    def sit_down(self) -> Backend:
        """Lets this process act as the person; calls that are not answered are repeated soon."""
        os.environ |= {
            "MLFLOW_TRACKING_USERNAME": self.name,
            "MLFLOW_TRACKING_PASSWORD": self.password,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
            "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.1",
        }
        return Backend(self.uri, None)


@dataclass(frozen=True)
class KnownCandidate:
    """A candidate whose true quality is its version's number."""

    model: str
    version: int

    @property
    def sha256(self) -> str:
        return f"{self.version:064x}"

    manifest_sha256 = "f" * 64

    @property
    def tags(self) -> dict[str, str]:
        return {"forger.sha256": self.sha256, "forger.manifest": self.manifest_sha256}


def quality(entry: Entry | None) -> int:
    """The true quality of the generator that an entry made champion."""
    return 0 if entry is None else int(entry.candidate.rpartition("/")[2])


def measure(candidate: KnownCandidate, *, seconds: float) -> Callable[[Entry | None], Verdict]:
    """A gate that is always right and takes up to `seconds`."""

    def decide(champion: Entry | None) -> Verdict:
        time.sleep(random.uniform(0, seconds))
        better = candidate.version > quality(champion)
        return Verdict(promote=better, outcome="promoted" if better else "rejected")

    return decide


def run_promotion(
    person: Person, model: str, candidate: KnownCandidate, op: str, seconds: float
) -> Promotion:
    """One promotion as a person would do it: repeated where it was not answered."""
    where = person.sit_down()
    return patiently(
        lambda: promote(
            PromotionLog(where, model),
            candidate,
            measure(candidate, seconds=seconds),
            actor=person.name,
            reason="a race",
            op=op,
        )
    )


def patiently(command: Callable[[], T]) -> T:
    """What a command gives, repeated where MLflow did not answer it in its own three tries."""
    for _ in range(MAX_REPEATS):
        try:
            return command()
        except ConfigError as error:
            if "API request" not in str(error):
                raise
    raise AssertionError(f"not answered {MAX_REPEATS} times")


def _work(
    answer: Connection,
    barrier: Barrier,
    person: Person,
    model: str,
    candidate: KnownCandidate,
    op: str,
    seconds: float,
) -> None:
    barrier.wait(DEADLINE_SEC)
    answer.send("began")
    try:
        answer.send(run_promotion(person, model, candidate, op, seconds).outcome)
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")


class Promoter:
    """One process that promotes one candidate as soon as all of its group are there."""

    def __init__(
        self,
        barrier: Barrier,
        person: Person,
        model: str,
        candidate: KnownCandidate,
        *,
        op: str,
        seconds: float,
    ):
        self.op, self.candidate = op, candidate
        self._barrier = barrier  # its semaphores go when nobody here holds it
        self._answer, theirs = FORKS.Pipe(duplex=False)
        self.process: ForkServerProcess = FORKS.Process(
            target=_work, args=(theirs, barrier, person, model, candidate, op, seconds)
        )
        self.process.start()
        theirs.close()

    def wait_to_begin(self) -> None:
        assert self._answer.recv() == "began"

    def last_word(self) -> str:
        """The outcome, or the error that it ended with."""
        word = ""
        try:
            while True:
                word = self._answer.recv()
        except EOFError:
            self.process.join(DEADLINE_SEC)
            return word
