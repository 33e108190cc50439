"""forger promote: a candidate through the gate."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from jobs.options import Progress, images_option, judging

if TYPE_CHECKING:
    from pipeline.promote import Decided

EXIT_CODES = {"promoted": 0, "in charge": 0, "rejected": 3, "unresolved": 4}


@click.command("promote")
@click.argument("model", metavar="MODEL")
@images_option("Judged of each, to begin with.")
@click.option(
    "--max-images",
    type=click.IntRange(100),
    default=50_000,
    show_default=True,
    help="Judged of each at most, where fewer cannot tell them apart.",
)
@click.option(
    "--rules",
    type=click.Path(exists=True, dir_okay=False),
    help="TOML file of the gate's rules, where they shall not be the defaults.",
)
@judging
@click.option("--force", is_flag=True, help="Promote whatever the gate says; needs --reason.")
@click.option("--reason", default="", help="Why; kept in the log.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model, images, max_images, rules, against, held_out, extractor, weights, weights_sha256,
    workers, storage, force, reason, as_json,
) -> None:  # fmt: skip
    """Judge the candidate MODEL against the champion, and promote it if it passes the gate.

    MODEL is NAME (its newest candidate) or NAME/VERSION (of NAME-candidates). Both draw from the
    same fresh latents. The first champion has no opponent and must clear absolute floors. Each
    attempt spends its share of the false-promotion rate, alpha of all attempts together; the same
    command repeated is the same attempt.

    Exit code 0: promoted (or champion already); 3: rejected; 4: not resolvable with this many
    images; 2: it could not be judged. The champion is untouched by all but 0, unless --force.
    """
    from pipeline.backend import backend
    from pipeline.contest import Counts
    from pipeline.experiment import ClusterConfig
    from pipeline.gate_rules import load_rules
    from pipeline.promote import GateRequest, promote_candidate

    request = GateRequest(
        rules=load_rules(rules), counts=Counts(first=images, most=max(images, max_images)),
        against=against, held_out=held_out, extractor=extractor, weights=weights,
        weights_sha256=weights_sha256, force=force, reason=reason,
    )  # fmt: skip
    cluster = ClusterConfig(workers=workers, storage=storage)
    with Progress() as told:
        decided = promote_candidate(
            model, request, where=backend(storage), storage=storage, cluster=cluster, told=told
        )
    if as_json:
        click.echo(json.dumps(decided.record()))
    else:
        _print(decided)
    outcome = decided.promotion.outcome
    sys.exit(0 if decided.promotion.moved else EXIT_CODES[outcome])


def _print(decided: Decided) -> None:
    for finding in decided.drift.findings if decided.drift else ():
        click.echo(f"drift    {finding}", err=True)
    promotion, candidate, contest = decided.promotion, decided.candidate, decided.contest
    against = "the floors of a first champion"
    if promotion.replaced is not None:
        against = f"entry {promotion.replaced.version}"
    if promotion.outcome == "in charge":
        click.echo(f"{candidate.uri} is the champion already ({against})")
        return
    if contest is not None and decided.attempt is not None:
        for check in contest.comparison.checks:
            state = {True: "passed", False: "failed", None: "open"}[check.passed]
            click.echo(f"{check.name:<14}{state:<8}{check.sentence}")
        click.echo(
            f"\n{contest.protocol.num_images} images of each against "
            f"{contest.protocol.num_reference} real ones, extractor {contest.protocol.extractor}; "
            f"attempt {decided.attempt.number}, level {contest.comparison.alpha:.2g}"
        )
        click.echo(f"decision {decided.page}")
    if promotion.entry is None:
        click.echo(f"{promotion.outcome}: {candidate.uri} against {against}; the champion stays")
        return
    forced = ", forced" if promotion.entry.forced else ""
    click.echo(
        f"promoted{forced}: models:/{promotion.model}@champion is {candidate.uri} now "
        f"(entry {promotion.entry.version}, against {against})"
    )
