"""The promotion log in MLflow: versions of a registered model, and the alias that shows the last.

MLflow moves an alias for whoever asks last and has no compare-and-swap. But it creates a model
version with its number and its tags in one transaction. So the versions of the model NAME are the
log (pipeline.entries): an entry says which champion it was decided against, and of those that
say the same only the first takes effect. The alias `champion` only shows the log's last entry to
MLflow's own readers, and whoever was killed before setting it is made up for by the next command.

It holds on one database: no read replica may stand between, for it would show the log of before.
"""

from __future__ import annotations

import getpass
import logging
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from gan.config import ConfigError, check
from pipeline.entries import ENTRY, LINK, Entry, Head, Ledger, replay
from pipeline.tracking import Backend

log = logging.getLogger(__name__)

CHAMPION = "champion"
HEAD = "forger.head"  # tag of the model: the entry that was last made champion
OVERTAKEN = "forger.overtaken"  # tag of an entry that never took effect, for readers of versions
PAGE = 500
PAUSES_SEC = (0.1, 0.3, 1.0, 3.0)  # between tries of a call that was not answered
MAX_PROJECTIONS = 50
REFUSALS = {  # error codes that another try does not change
    "PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drift:
    """What the alias or the log should not show."""

    alias: int | None  # version that the alias `champion` named; None where there was none
    champion: int | None  # version that the log says
    findings: tuple[str, ...]  # one readable line each


class PromotionLog:
    """The log of one registered model. Holds what it has read; one thread uses it."""

    def __init__(self, where: Backend, model: str):
        check(
            (
                bool(re.fullmatch(r"[^'\"/:]{1,250}", model)),
                f"a model's name must have no quotes, slashes or colons, got {model!r}",
            )
        )
        self.where, self.model = where, model
        self.client = MlflowClient(tracking_uri=where.uri, registry_uri=where.uri)
        self._tags: dict[int, Mapping[str, str]] = {}
        self._registered: RegisteredModel | None = None
        self._ledger = replay(model, ())

    # --- reading --------------------------------------------------------------------------------

    def read(self) -> Ledger:
        """The whole log, read anew. Raises ConfigError where there is no such model."""
        self._tags = {}
        with self._explained("be read", f"READ on the registered model {self.model!r}"):
            self._registered = self.client.get_registered_model(self.model)
        return self.latest()

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, oldest first, with what became of it."""
        return self.read().entries

    def champion(self) -> Entry | None:
        """The entry in charge, by the log and not by the alias; None where none was promoted."""
        return self.read().champion

    def latest(self) -> Ledger:
        """The log as it was read, with the entries that came since. A version's number becomes
        visible after all lower ones, so reading on from the last number misses none.
        """
        with self._explained("be read", f"READ on the registered model {self.model!r}"):
            while True:
                last = max(self._tags, default=0)
                found = self.client.search_model_versions(
                    f"name = '{self.model}' and version_number > {last}",
                    max_results=PAGE,
                    order_by=["version_number ASC"],
                )
                self._tags |= {int(version.version): version.tags for version in found}
                if len(found) < PAGE:
                    break
        tags = {} if self._registered is None else self._registered.tags
        self._ledger = replay(self.model, self._tags.items(), head=Head.parse(tags.get(HEAD)))
        return self._ledger

    def lineage_of(self, entry: Entry) -> dict[str, str]:
        """The lineage tags of an entry that was read."""
        return lineage(self._tags[entry.version])

    # --- writing --------------------------------------------------------------------------------

    def create(self) -> None:
        """Creates the registered model where there is none yet."""
        with self._explained("be created", "the right to create registered models"):
            try:
                self.client.get_registered_model(self.model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                try:
                    self.client.create_registered_model(self.model)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # somebody was faster
                        raise

    def append(self, entry: Entry, *, source: str, tags: Mapping[str, str]) -> Entry | None:
        """Writes an entry that `source` (models:/NAME/VERSION) has the artifact of, once for its
        op; returns it with what replay found, or None where another one had been faster.

        An entry that would come too late is not written. `tags` are the generator's lineage, and
        are copied. A call that is not answered may have been carried out: it is looked for
        before it is tried again.
        """
        check((bool(re.fullmatch(r"[\w.:-]{1,200}", entry.op)), f"op {entry.op!r} is no plain id"))
        for pause in (*PAUSES_SEC, None):
            ledger = self.latest()
            if (mine := ledger.by_op(entry.op)) is not None:
                break
            if ledger.tip != entry.expects:
                return None
            try:
                with _asked_once():
                    self.client.create_model_version(
                        self.model,
                        source,
                        tags={**tags, **entry.tags()},
                        description=_sentence(entry),
                        await_creation_for=0,
                    )
            except MlflowException as error:
                if error.error_code in REFUSALS or pause is None:
                    with self._explained(
                        f"take a {entry.kind} of {source}",
                        f"EDIT on the registered model {self.model!r} "
                        f"and READ on that of the candidate",
                    ):
                        raise
                log.info("the entry was not answered, looking for it: %s", error)
                time.sleep(pause * random.uniform(0.5, 1))
        else:
            mine = self.latest().by_op(entry.op)
        if mine is None or mine.state == "applied":
            return mine
        try:
            self._mark_overtaken()
        except ConfigError as error:  # the next command does it
            log.info("an overtaken entry was not marked: %s", error)
        return None

    def project(self) -> Entry | None:
        """Lets the alias name the champion, and looks again until neither moved meanwhile.

        Where the entry in charge is damaged the alias stays where it is: see `reconcile`.
        """
        for turn in range(MAX_PROJECTIONS):
            with self._explained("be read", f"READ on the registered model {self.model!r}"):
                self._registered = self.client.get_registered_model(self.model)
            ledger = self.latest()
            champion = ledger.champion
            if champion is None or ledger.in_doubt is not None:
                return champion
            head = Head.parse(self._registered.tags.get(HEAD))
            named = _named(self._registered)
            try:
                if named != champion.version:
                    with self._explained_refusal("have its alias moved"):
                        self.client.set_registered_model_alias(
                            self.model, CHAMPION, str(champion.version)
                        )
                if head is None or head.version < champion.version:
                    note = str(Head(champion.version, champion.link))
                    with self._explained_refusal("have its tags set"):
                        self.client.set_registered_model_tag(self.model, HEAD, note)
                elif named == champion.version:
                    return champion
            except MlflowException as error:
                # Of several that set an alias for the first time some get a UniqueViolation.
                log.info("the alias was not set, looking again: %s", error)
                self._tags = {}  # its version may have been deleted
                time.sleep(random.uniform(0, 0.1) * (turn + 1))
        raise ConfigError(
            [f"the log of {self.model!r} moved {MAX_PROJECTIONS} times while its alias was set"]
        )

    def drift(self) -> Drift | None:
        """What the alias and the log show that they should not; None where all is as it was
        written. Changes nothing.
        """
        for _ in range(2):  # somebody may have been about to set the alias
            ledger = self.read()
            assert self._registered is not None
            named = _named(self._registered)
            expected = None if ledger.champion is None else ledger.champion.version
            if named == expected:
                break
        findings = list(ledger.damages())
        doubted = ledger.in_doubt
        if doubted is not None:
            findings.append(f"the alias stays where it is: entry {doubted.version} was in charge; "
                            f"`forger rollback {self.model}` puts a whole one there")  # fmt: skip
        elif named != expected:
            head = Head.parse(self._registered.tags.get(HEAD))
            made = head is not None and head.version == expected
            findings.append(
                f"the alias {CHAMPION} "
                + ("is missing" if named is None else f"names {named}")
                + f", the log says {expected or 'that there is none'}: "
                + ("it was moved by hand" if made or not expected else "a move did not finish")
            )
        return Drift(named, expected, tuple(findings)) if findings else None

    def reconcile(self) -> Drift | None:
        """Repairs what a killed command or a hand left behind, and says what it found.

        The alias follows the log again. Damage to the log is told each time: nobody can repair
        it, and it costs only what `replay` says.
        """
        found = self.drift()
        if found is not None:
            self.project()
        self._mark_overtaken()
        return found

    def _mark_overtaken(self) -> None:
        """Tags entries that never took effect, so that readers of models:/NAME/VERSION see it."""
        for entry in self._ledger.entries:
            overtaken = entry.state in ("superseded", "repeated")
            if overtaken and OVERTAKEN not in self._tags[entry.version]:
                with self._explained("have its tags set", f"EDIT on {self.model!r}"):
                    self.client.set_model_version_tag(
                        self.model, str(entry.version), OVERTAKEN, entry.state
                    )
                self._tags[entry.version] = {**self._tags[entry.version], OVERTAKEN: entry.state}

    # --- errors for people ----------------------------------------------------------------------

    @contextmanager
    def _explained(self, doing: str, right: str) -> Iterator[None]:
        """MLflow's errors in this block as ConfigError, with what would help."""
        try:
            yield
        except MlflowException as error:
            raise ConfigError([self._words(error, doing, right)]) from None

    @contextmanager
    def _explained_refusal(self, doing: str) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            if error.error_code not in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
                raise
            right = f"EDIT on the registered model {self.model!r}"
            raise ConfigError([self._words(error, doing, right)]) from None

    def _words(self, error: MlflowException, doing: str, right: str) -> str:
        match error.error_code:
            case "PERMISSION_DENIED":
                return (f"the model {self.model!r} may not {doing} by {who()}: that needs {right} "
                        f"at {self.where.uri}; its administrator grants it")  # fmt: skip
            case "UNAUTHENTICATED" | "CUSTOMER_UNAUTHORIZED":
                return (f"MLflow at {self.where.uri} does not know {who()}; set "
                        f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")  # fmt: skip
            case "RESOURCE_DOES_NOT_EXIST":
                return f"{error.message} at {self.where.uri}; the model {self.model!r} may not " \
                       f"have been promoted yet"  # fmt: skip
        return f"MLflow at {self.where.uri} did not let the model {self.model!r} {doing}: {error}"


def who() -> str:
    """Who acts: MLFLOW_TRACKING_USERNAME, or the user of this machine."""
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return name
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _sentence(entry: Entry) -> str:
    """What a reader of MLflow's pages sees at the version."""
    done = f"rolled back to {entry.restores}" if entry.kind == "rollback" else "promoted"
    return f"{done} by {entry.actor}" + (f": {entry.reason}" if entry.reason else "")


def _named(model: RegisteredModel) -> int | None:
    version = model.aliases.get(CHAMPION)
    return None if version is None else int(version)


_environment = threading.Lock()
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


@contextmanager
def _asked_once() -> Iterator[None]:
    """MLflow's client asks again by itself where an answer was lost, creates included, and would
    create twice. It reads its patience from the environment at each call.
    """
    with _environment:
        before = os.environ.get(_RETRIES)
        os.environ[_RETRIES] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_RETRIES]
            else:
                os.environ[_RETRIES] = before


def lineage(tags: Mapping[str, str]) -> dict[str, str]:
    """A version's tags without those of the log: what a copy of it takes along."""
    own = (ENTRY, LINK, OVERTAKEN)
    return {name: value for name, value in tags.items() if name not in own}
