"""The promotion log in MLflow: versions of a registered model, and the alias that shows the last.

MLflow moves an alias for whoever asks last and has no compare-and-swap. But it creates a model
version with its number and its tags in one transaction. So the versions of the model NAME are the
log (pipeline.entries): an entry says which champion it was decided against, and of those that
say the same only the first takes effect. The alias `champion` only shows the log's last entry to
MLflow's own readers, and whoever was killed before setting it is made up for by the next command.

It holds on one database: no read replica may stand between, for it would show the log of before.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

from pipeline.backend import Backend, pointed_at  # before MLflow: it sets MLflow's environment

# isort: split
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from gan.config import ConfigError, check
from pipeline.asking import create_once, explained
from pipeline.entries import OVERTAKEN, OWN, Entry, Head, Ledger, replay

log = logging.getLogger(__name__)

CHAMPION = "champion"
HEAD = "forger.head"  # tag of the model: the entry that was last made champion
PAGE = 500
MARK = "forger.log"  # tag of the model, set again by each promoter before it measures
MAX_PROJECTIONS = 50


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
        self.ledger = replay(model, ())

    # --- reading --------------------------------------------------------------------------------

    def read(self, *, create: bool = False) -> Ledger:
        """The whole log, read anew. Raises ConfigError where there is no such model, unless it is
        to be created then.
        """
        self._tags = {}
        with self._reading():
            try:
                self._registered = self.client.get_registered_model(self.model)
            except MlflowException as error:
                if not create or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self._registered = self._create()
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
        with self._reading():
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
        self.ledger = replay(self.model, self._tags.items(), head=self._noted)
        return self.ledger

    def lineage_of(self, entry: Entry) -> dict[str, str]:
        """The lineage tags of an entry that was read."""
        return lineage(self._tags[entry.version])

    # --- writing --------------------------------------------------------------------------------

    def _create(self) -> RegisteredModel:
        right = "the right to create registered models"
        with explained(self.where, f"create the registered model {self.model!r}", right=right):
            try:
                return self.client.create_registered_model(self.model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # somebody was faster
                    raise
                return self.client.get_registered_model(self.model)

    def check_right(self) -> None:
        """Raises ConfigError where the user may not write here: to be asked before a gate works
        for minutes. MLflow answers that only to who tries, so a tag is set that says nothing new.
        """
        with suppress(MlflowException), self._editing("write to"):
            self.client.set_registered_model_tag(self.model, MARK, "1")

    def append(self, entry: Entry, *, source: str, tags: Mapping[str, str]) -> Entry | None:
        """Writes an entry that `source` (models:/NAME/VERSION) has the artifact of, once for its
        op; returns it with what replay found, or None where another one had been faster.

        An entry that would come too late is not written. `tags` are the generator's lineage, and
        are copied. A call that is not answered may have been carried out: it is looked for
        before it is tried again.
        """
        check((bool(re.fullmatch(r"[\w.:-]{1,200}", entry.op)), f"op {entry.op!r} is no plain id"))
        entry = entry.carrying(tags)

        def look() -> Entry | Ledger | None:
            ledger = self.latest()
            return ledger.by_op(entry.op) or (ledger if ledger.tip != entry.expects else None)

        def write() -> None:
            with pointed_at(self.where):  # the client looks `source` up where MLflow points
                self.client.create_model_version(
                    self.model,
                    source,
                    tags={**tags, **entry.tags()},
                    description=_sentence(entry),
                    await_creation_for=0,
                )

        doing = f"take {source} into the registered model {self.model!r}"
        right = f"EDIT on {self.model!r} and READ on that of the candidate"
        with explained(self.where, doing, right=right):
            mine = create_once(look, write)
        if isinstance(mine, Ledger):  # somebody else was faster, and it was not written
            return None
        if mine.state == "applied":
            return mine
        try:
            self._mark_overtaken(mine)
        except ConfigError as error:  # the next command does it
            log.info("an overtaken entry was not marked: %s", error)
        return None

    def project(self) -> Entry | None:
        """Lets the alias name the champion, and looks again until neither moved meanwhile.

        Where the entry in charge is damaged the alias stays where it is: see `reconcile`.
        """
        for turn in range(MAX_PROJECTIONS):
            with self._reading():
                self._registered = self.client.get_registered_model(self.model)
            ledger = self.latest()
            champion = ledger.champion
            if champion is None or ledger.in_doubt is not None or self._shows(champion):
                return champion
            try:
                self._show(champion)
            except MlflowException as error:
                log.info("the alias was not set, looking again: %s", error)
                self._tags = {}  # its version may have been deleted
                time.sleep(random.uniform(0, 0.1) * (turn + 1))
        raise ConfigError(
            [f"the log of {self.model!r} moved {MAX_PROJECTIONS} times while its alias was set"]
        )

    def finish(self, written: Entry) -> None:
        """Shows an entry that took effect just now, unless a later one did meanwhile."""
        try:
            self._show(written)
        except MlflowException as error:
            log.info("the alias was not set, looking again: %s", error)
        self.project()

    def _show(self, champion: Entry) -> None:
        """Points the alias and the note at an entry. It may be one of yesterday by now, so
        `project` has to look after it. Raises MlflowException.
        """
        with self._editing(f"move the alias {CHAMPION} of"):
            self.client.set_registered_model_alias(self.model, CHAMPION, str(champion.version))
            if self._noted is None or self._noted.version < champion.version:
                note = str(Head(champion.version, champion.link))
                self.client.set_registered_model_tag(self.model, HEAD, note)

    def _shows(self, champion: Entry) -> bool:
        """Whether the alias names it, and the note it or one that was deleted since."""
        noted = self._noted is not None and self._noted.version >= champion.version
        return noted and self._named == champion.version

    @property
    def _named(self) -> int | None:
        """The version that the alias named when it was read."""
        version = None if self._registered is None else self._registered.aliases.get(CHAMPION)
        return None if version is None else int(version)

    @property
    def _noted(self) -> Head | None:
        """The entry that was last made champion, as noted when it was read."""
        return Head.parse(None if self._registered is None else self._registered.tags.get(HEAD))

    def drift(self) -> Drift | None:
        """What the alias and the log show that they should not; None where all is as it was
        written. Changes nothing.
        """
        self.read()
        return self._drift()

    def _drift(self) -> Drift | None:
        if self._expected != self._named:  # somebody may have been about to set the alias
            self.read()
        findings = list(self.ledger.damages())
        named, expected, doubted = self._named, self._expected, self.ledger.in_doubt
        if doubted is not None:
            findings.append(
                f"the alias stays where it is: entry {doubted.version} was in charge; "
                f"`forger rollback {self.model}` puts a whole one there"
            )
        elif named != expected:
            made = self._noted is not None and self._noted.version == expected
            findings.append(
                f"the alias {CHAMPION} "
                + ("is missing" if named is None else f"names {named}")
                + f", the log says {expected or 'that there is none'}: "
                + ("it was moved by hand" if made or not expected else "a move did not finish")
            )
        return Drift(named, expected, tuple(findings)) if findings else None

    @property
    def _expected(self) -> int | None:
        return None if self.ledger.champion is None else self.ledger.champion.version

    def reconcile(self, *, create: bool = False) -> Drift | None:
        """Repairs what a killed command or a hand left behind, and says what it found.

        The alias follows the log again. Damage to the log is told each time: nobody can repair
        it, and it costs only what `replay` says. What was read stays for `ledger`.
        """
        self.read(create=create)
        found = self._drift()
        if found is not None:
            self.project()
        self._mark_overtaken(*self.ledger.entries)
        return found

    def _mark_overtaken(self, *entries: Entry) -> None:
        """Tags entries that never took effect, so that readers of models:/NAME/VERSION see it."""
        for entry in entries:
            overtaken = entry.state in ("superseded", "repeated")
            if overtaken and OVERTAKEN not in self._tags[entry.version]:
                with suppress(MlflowException), self._editing("tag"):
                    self.client.set_model_version_tag(
                        self.model, str(entry.version), OVERTAKEN, entry.state
                    )
                self._tags[entry.version] = {**self._tags[entry.version], OVERTAKEN: entry.state}

    def _reading(self) -> AbstractContextManager:
        doing = f"read the registered model {self.model!r}"
        return explained(self.where, doing, right=f"READ on {self.model!r}")

    def _editing(self, doing: str) -> AbstractContextManager:
        """Denials as ConfigError; other errors stay MLflow's. Of several that set an alias or a
        tag for the first time some get a UniqueViolation, and then it is set.
        """
        doing, right = f"{doing} the registered model {self.model!r}", f"EDIT on {self.model!r}"
        return explained(self.where, doing, right=right, only_denials=True)


def _sentence(entry: Entry) -> str:
    """What a reader of MLflow's pages sees at the version."""
    done = f"rolled back to {entry.restores}" if entry.kind == "rollback" else "promoted"
    return f"{done} by {entry.actor}" + (f": {entry.reason}" if entry.reason else "")


def lineage(tags: Mapping[str, str]) -> dict[str, str]:
    """A version's tags without those of the log: what a copy of it takes along."""
    return {name: value for name, value in tags.items() if name not in OWN}
