"""Stage: a candidate through the gate, and the champion's move where it passes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from gan.config import ConfigError
from pipeline.attempts import Attempt, begin_attempt, fail_attempt, finish_attempt
from pipeline.backend import Backend
from pipeline.contest import Contest, Counts, hold, record
from pipeline.decision_page import decision_page
from pipeline.entries import Entry
from pipeline.experiment import ClusterConfig
from pipeline.gate import GateRules, spent_alpha
from pipeline.ground import Ground, Told, ground_for
from pipeline.hands import hands
from pipeline.promotions import Drift, Promotion, PromotionLog, Verdict, promote, who
from pipeline.registry import CANDIDATES, Candidate, candidate_version, load_registered
from pipeline.snapshot import Snapshot
from pipeline.tracking import experiment_called, run_url


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRequest:
    """What the caller of the gate decides: by which rules, on what, with how many images."""

    rules: GateRules
    counts: Counts
    against: str | None = None
    held_out: str | None = None
    extractor: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    force: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """How the promotion ended, and the last contest that was held for it."""

    promotion: Promotion
    candidate: Candidate
    contest: Contest | None  # None where there was nothing to decide
    attempt: Attempt | None
    drift: Drift | None  # what the alias showed that the log did not say, before this command
    page: str | None  # where to look at the decision

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "outcome": self.promotion.outcome,
            "moved": self.promotion.moved,
            "candidate": self.candidate.uri,
            "entry": self.promotion.entry and dataclasses.asdict(self.promotion.entry),
            "replaced": self.promotion.replaced and dataclasses.asdict(self.promotion.replaced),
            "attempt": self.attempt and dataclasses.asdict(self.attempt),
            "contest": self.contest and record(self.contest),
            "drift": self.drift and dataclasses.asdict(self.drift),
            "page": self.page,
        }


def promote_candidate(
    name: str,
    request: GateRequest,
    *,
    where: Backend,
    storage: str,
    cluster: ClusterConfig,
    told: Told = lambda what, done, total: None,
) -> Decided:
    """Judges the candidate that `name` means against the champion and promotes it if it passes.

    Repeated after a crash it goes on with the same attempt: the same latents, the same share of
    alpha, the same decision. Raises ConfigError where there is nothing that can be judged; the
    champion then stays as it is.
    """
    candidate = candidate_version(where.client(), name)
    model = candidate.model.removesuffix(CANDIDATES)
    challenger = load_registered(where, candidate.uri)
    log = PromotionLog(where, model)
    drift = log.reconcile(create=True)
    op = _op(model, candidate, log.ledger.tip, request)
    bench = _Bench(where, model, candidate, challenger, request, op, storage, cluster, told)
    promotion = promote(
        log, candidate, bench.decide, actor=who(), reason=request.reason, op=op,
        force=request.force,
    )  # fmt: skip
    return Decided(
        promotion=promotion,
        candidate=candidate,
        contest=bench.contest,
        attempt=bench.attempt,
        drift=drift,
        page=bench.page,
    )


def _op(model: str, candidate: Candidate, tip: int, request: GateRequest) -> str:
    """Names the command: the same candidate by the same rules against the same champion."""
    asked = {**dataclasses.asdict(request), "reason": "", "force": False}
    parts = [model, candidate.manifest_sha256, tip, asked]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(slots=True)
class _Bench:
    """Where the gate sits: judges the challenger against whoever is the champion."""

    where: Backend
    model: str
    candidate: Candidate
    challenger: Snapshot
    request: GateRequest
    op: str
    storage: str
    cluster: ClusterConfig
    told: Told
    contest: Contest | None = None
    attempt: Attempt | None = None
    page: str | None = None

    def decide(self, entry: Entry | None) -> Verdict:
        """Holds a contest of its own against this champion, and records it."""
        champion = None
        if entry is not None:
            champion = load_registered(self.where, f"models:/{self.model}/{entry.version}")
        ground = self._ground(champion)
        against = entry.version if entry else 0
        op = hashlib.sha256(f"{self.op}/{against}".encode()).hexdigest()[:32]
        tags = {"forger.candidate": self.candidate.uri, "forger.champion": str(against)}
        self.attempt = begin_attempt(
            self.where, self.model, op=op, tags=tags,
            name=f"gate-{self.candidate.version}-against-{against or 'the-floors'}",
        )  # fmt: skip
        alpha = spent_alpha(self.request.rules.alpha, self.attempt.number)
        try:
            with hands(self.cluster) as each:
                self.contest = hold(
                    champion, self.challenger, ground, rules=self.request.rules, alpha=alpha,
                    seed=int(op[:15], 16), counts=self.request.counts, each=each, told=self.told,
                )  # fmt: skip
        except Exception as error:
            fail_attempt(self.where, self.attempt, reason=f"{type(error).__name__}: {error}")
            raise
        return self._record(self.contest, entry, ground)

    def _ground(self, champion: Snapshot | None) -> Ground:
        """What the champion is judged by counts for both, so that no trainer picks the measure."""
        asked = self.request
        ground = ground_for(
            champion or self.challenger, against=asked.against, held_out=asked.held_out,
            extractor=asked.extractor, weights=asked.weights,
            weights_sha256=asked.weights_sha256, storage=self.storage,
        )  # fmt: skip
        trained_on, copied = self.challenger.card.lineage["data_digest"], ground.copied
        if asked.against is None and trained_on != copied.digest:
            raise ConfigError(
                [
                    f"{self.candidate.uri} was trained on data {trained_on[:12]}, the champion on "
                    f"that at {copied.uri} ({copied.digest[:12]}); say with --against which data "
                    f"both are judged on"
                ]
            )
        return ground

    def _record(self, contest: Contest, entry: Entry | None, ground: Ground) -> Verdict:
        assert self.attempt is not None
        decision = self._decision(contest, entry)
        tags = {
            "forger.outcome": contest.comparison.outcome,
            "forger.protocol": contest.protocol.sha256,
            "forger.actor": who(),
        }
        evidence = finish_attempt(
            self.where,
            self.attempt,
            decision=decision,
            page=decision_page(contest, decision, ground),
            metrics=gate_metrics(contest),
            tags=tags,
        )
        experiment = experiment_called(
            self.where.client(), f"{self.model}-gate", artifacts=self.where.artifacts
        )
        contest.forget()
        self.page = run_url(self.where, experiment, self.attempt.run_id)
        return Verdict(
            promote=contest.comparison.outcome == "promoted",
            outcome=contest.comparison.outcome,
            decision=self.attempt.run_id,
            evidence=evidence,
            protocol=contest.protocol.sha256,
        )

    def _decision(self, contest: Contest, entry: Entry | None) -> dict[str, Any]:
        """The evidence, as plain data: all that a reader needs to take the decision again."""
        assert self.attempt is not None
        champion = None
        if entry is not None:
            champion = {"entry": entry.version, "candidate": entry.candidate,
                        "sha256": entry.sha256}  # fmt: skip
        return {
            "model": self.model,
            "candidate": {
                "uri": self.candidate.uri,
                "sha256": self.candidate.sha256,
                "manifest": self.candidate.manifest_sha256,
                "data_digest": self.challenger.card.lineage["data_digest"],
            },
            "champion": champion,
            "actor": who(),
            "reason": self.request.reason,
            "forced": self.request.force,
            "attempt": self.attempt.number,
            "rules": dataclasses.asdict(self.request.rules),
            "counts": dataclasses.asdict(self.request.counts),
            "found": record(contest),
        }


def gate_metrics(contest: Contest) -> dict[str, float]:
    """What a list of attempts shows of each: every check's value and error."""
    found = {"gate/images": float(contest.comparison.num_images),
             "gate/alpha": contest.comparison.alpha}  # fmt: skip
    for check in contest.comparison.checks:
        found[f"gate/{check.name}"] = check.value
        found[f"gate/{check.name}_se"] = check.standard_error
    return found
