"""Moving the champion: promote a candidate that a gate said yes to, or roll back to an older one.

Both are one entry of the promotion log, safe to repeat after a crash and safe when several race:
whoever decided against a champion that is not in charge any more decides again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from gan.config import ConfigError
from pipeline.asking import who
from pipeline.entries import Entry, Ledger, digest
from pipeline.promotion_log import Drift, PromotionLog, lineage

__all__ = [
    "Candidate",
    "Drift",
    "Promotion",
    "PromotionLog",
    "Verdict",
    "promote",
    "rollback",
    "rollback_op",
    "who",
]

log = logging.getLogger(__name__)

MAX_ROUNDS = 30


class Candidate(Protocol):
    """A registered version that may become champion."""

    @property
    def model(self) -> str:
        """The registered model it is a version of: "NAME-candidates"."""
        ...

    @property
    def version(self) -> str | int:
        """Its number there."""
        ...

    @property
    def sha256(self) -> str:
        """Of its weights."""
        ...

    @property
    def manifest_sha256(self) -> str:
        """Of its manifest.json."""
        ...

    @property
    def tags(self) -> Mapping[str, str]:
        """Its lineage, as tags of the version."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate says of a candidate against the champion."""

    promote: bool
    outcome: str  # "promoted", "rejected" or "unresolved"
    decision: str | None = None  # the gate's MLflow run
    evidence: str = ""  # sha256 of its record
    protocol: str = ""  # digest of how it measured


@dataclass(frozen=True, slots=True)
class Promotion:
    """How a promotion or a rollback ended."""

    model: str
    entry: Entry | None  # the log's entry; None where the champion was left alone
    replaced: Entry | None  # the champion that it was decided against; None for the first
    verdict: Verdict | None  # None for a rollback, and where an earlier call had done it
    outcome: str  # the verdict's, or "in charge" where the candidate was the champion already
    rounds: int  # decisions that were taken; more than one where a race was lost

    @property
    def moved(self) -> bool:
        """Whether the candidate was made champion."""
        return self.entry is not None


def promote(
    promotions: PromotionLog,
    candidate: Candidate,
    decide: Callable[[Entry | None], Verdict],
    *,
    actor: str,
    reason: str,
    op: str,
    force: bool = False,
) -> Promotion:
    """Makes the candidate champion where `decide` says so against the champion of that moment.

    `op` names the command: repeated with the same op it takes effect once, and a repeated call
    says what the first one did. `decide` may be called several times, with another champion each.
    `force` overrules a no, and is recorded. Raises ConfigError where MLflow refuses, where the
    champion's entry was damaged, or where `force` comes without a reason.
    """
    if force and not reason.strip():
        raise ConfigError(["a forced promotion needs a reason, and it is recorded"])
    promotions.reconcile(create=True)
    promotions.check_right()
    for rounds in range(MAX_ROUNDS):
        ledger = promotions.latest() if rounds else promotions.ledger
        done, own_op = _earlier(ledger, op)
        if done is not None:
            return _repeated(promotions, ledger, done)
        if ledger.in_doubt is not None:
            raise ConfigError([_doubted(ledger.in_doubt)])
        champion = ledger.champion
        if champion is not None and _same(champion, candidate):
            return Promotion(promotions.model, None, champion, None, "in charge", rounds)
        verdict = decide(champion)
        if not (verdict.promote or force):
            return Promotion(
                promotions.model, None, champion, verdict, verdict.outcome, rounds + 1
            )
        entry = Entry(
            model=promotions.model,
            kind="promote",
            op=own_op,
            expects=ledger.tip,
            previous=ledger.tip_link,
            candidate=f"{candidate.model}/{candidate.version}",
            sha256=candidate.sha256,
            manifest=candidate.manifest_sha256,
            decision=verdict.decision,
            outcome=verdict.outcome,
            evidence=verdict.evidence,
            protocol=verdict.protocol,
            actor=actor,
            reason=reason,
            forced=not verdict.promote,
            time_ms=_now_ms(),
        )
        written = promotions.append(
            entry, source=f"models:/{entry.candidate}", tags=lineage(candidate.tags)
        )
        if written is not None:
            promotions.finish(written)
            return Promotion(
                promotions.model, written, champion, verdict, verdict.outcome, rounds + 1
            )
        log.info("another promotion of %s was faster; deciding again", promotions.model)
    raise ConfigError([_too_busy(promotions.model)])


def rollback(
    promotions: PromotionLog,
    *,
    to: int | None = None,
    actor: str,
    reason: str,
    op: str,
    verify: Callable[[Entry], None],
) -> Promotion:
    """Puts an older champion back in charge: version `to` of the log, or the one before.

    The one before is the generator that the present one replaced: a second rollback goes further
    back, and never returns to what the first one took away. No gate is asked, but `verify` loads
    the artifact of models:/NAME/VERSION of the entry it is given and raises where it is not whole.
    `op` as in `promote`. Raises ConfigError where there is nothing to go back to, or where `to`
    was left out and somebody else moved the champion meanwhile.
    """
    if not reason.strip():
        raise ConfigError(["a rollback needs a reason, and it is recorded"])
    promotions.reconcile()
    promotions.check_right()
    taken_away = None
    for rounds in range(MAX_ROUNDS):
        ledger = promotions.latest() if rounds else promotions.ledger
        done, own_op = _earlier(ledger, op)
        if done is not None:
            return _repeated(promotions, ledger, done)
        if to is None and taken_away not in (None, ledger.tip):
            raise ConfigError(
                [
                    f"the champion of {promotions.model!r} became entry {ledger.tip} while this "
                    f"command ran; see `forger history {promotions.model}`, and name the one you "
                    f"want with --to"
                ]
            )
        taken_away = ledger.tip
        target = _target(ledger, promotions.model, to)
        verify(target)
        entry = Entry(
            model=promotions.model,
            kind="rollback",
            op=own_op,
            expects=ledger.tip,
            previous=ledger.tip_link,
            candidate=target.candidate,
            sha256=target.sha256,
            manifest=target.manifest,
            restores=target.origin,
            actor=actor,
            reason=reason,
            time_ms=_now_ms(),
        )
        # From the log's own version, for the candidate's may have been deleted since.
        source = f"models:/{promotions.model}/{target.version}"
        written = promotions.append(entry, source=source, tags=promotions.lineage_of(target))
        if written is not None:
            promotions.finish(written)
            return Promotion(promotions.model, written, ledger.champion, None, "", rounds + 1)
    raise ConfigError([_too_busy(promotions.model)])


def rollback_op(ledger: Ledger, *, to: int | None, actor: str, reason: str) -> str:
    """The op of a rollback command: the same words typed again right after it are the same
    command, so that who saw no answer may type them again and goes back no further.
    """

    def op(replaced: int) -> str:
        return digest(json.dumps([to, actor, reason, replaced]))[:32]

    champion = ledger.champion
    if champion is not None and champion.op.startswith(op(champion.expects)):
        return op(champion.expects)
    return op(ledger.tip)


def _earlier(ledger: Ledger, op: str) -> tuple[Entry | None, str]:
    """What this op had done already, and the op of its next entry: one that lost its race stays
    in the log, and the decision after it is another entry.
    """
    number = 1
    while (found := ledger.by_op(f"{op}.{number}")) is not None:
        if found.takes_effect:
            return found, found.op
        number += 1
    return None, f"{op}.{number}"


def _repeated(promotions: PromotionLog, ledger: Ledger, done: Entry) -> Promotion:
    promotions.project()
    return Promotion(promotions.model, done, ledger.at(done.expects), None, done.outcome, 0)


def _same(champion: Entry, candidate: Candidate) -> bool:
    ours = (champion.sha256, champion.manifest)
    return ours == (candidate.sha256, candidate.manifest_sha256)


def _target(ledger: Ledger, model: str, to: int | None) -> Entry:
    """The entry to go back to."""
    champion = ledger.champion if ledger.in_doubt is None else None
    if to is not None:
        entry = ledger.at(to)
        if entry is None or not entry.takes_effect:
            never = f"{entry.damage or f'was {entry.state}'}" if entry else "does not exist"
            could = ", ".join(str(e.version) for e in ledger.applied()) or "none"
            raise ConfigError(
                [f"--to must be an entry of {model!r} that was champion ({could}); "
                 f"entry {to} {never}"]
            )  # fmt: skip
        if champion is not None and entry.version == champion.version:
            raise ConfigError([f"entry {to} is the champion of {model!r} already"])
        return entry
    if champion is None:
        older = list(ledger.applied())
    else:
        older = [
            entry
            for entry in ledger.applied()
            if entry.version < champion.origin and entry.sha256 != champion.sha256
        ]
    if not older:
        raise ConfigError([f"{model!r} has no older champion to go back to"])
    return older[-1]


def _doubted(entry: Entry) -> str:
    return (
        f"entry {entry.version} of {entry.model!r} is in charge but {entry.damage}; look at "
        f"`forger history {entry.model}`, then `forger rollback {entry.model} --reason ...` "
        f"puts a whole one in charge, and this can be repeated"
    )


def _too_busy(model: str) -> str:
    return (
        f"{model!r} got another champion {MAX_ROUNDS} times while this was decided; "
        f"try again when fewer promote"
    )


def _now_ms() -> int:
    return int(time.time() * 1000)
