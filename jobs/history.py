"""forger history: who made what champion, when and why; and whether it was tampered with."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from jobs.options import storage_option

if TYPE_CHECKING:
    from pipeline.entries import Entry, Ledger

HEADINGS = ("version", "when (UTC)", "what", "generator", "who", "outcome", "why")


@click.command("history")
@click.argument("model", metavar="MODEL")
@click.option("--repair", is_flag=True, help="Let the alias follow the log again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@storage_option
def command(model, repair, as_json, storage) -> None:
    """Show every promotion and rollback of MODEL, the newest first; the champion has a star.

    MODEL is a model's name: digits, or models:/digits. Ends with exit code 1 where the alias
    `champion` does not name the log's champion, or entries of the log were deleted or edited.
    """
    from pipeline.backend import backend
    from pipeline.entries import as_record
    from pipeline.promotions import PromotionLog

    log = PromotionLog(backend(storage), model_name(model))
    drift = log.reconcile() if repair else log.drift()
    left = log.drift() if repair and drift else drift
    findings = drift.findings if drift else ()
    if as_json:
        record = {
            "model": log.model,
            "champion": log.ledger.champion.version if log.ledger.champion else None,
            "alias": left.alias if left else _version(log.ledger.champion),
            "findings": findings,
            "entries": [as_record(entry) for entry in reversed(log.ledger.entries)],
        }
        click.echo(json.dumps(record))
    else:
        click.echo(table(log.ledger) if log.ledger.entries else "nobody was made champion yet")
        for finding in findings:
            click.echo(f"found: {finding}", err=True)
        if repair and drift:
            click.echo(f"the alias champion names {_version(log.ledger.champion)}", err=True)
    if left is not None:
        sys.exit(1)


def model_name(text: str) -> str:
    """NAME of models:/NAME, models:/NAME@champion, NAME@champion or NAME."""
    return text.removeprefix("models:/").partition("@")[0]


def _version(entry: Entry | None) -> int | None:
    return entry.version if entry else None


def table(ledger: Ledger) -> str:
    """The log as aligned columns."""
    rows = [HEADINGS, *(row(entry, ledger) for entry in reversed(ledger.entries))]
    widths = [max(len(line[column]) for line in rows) for column in range(len(HEADINGS) - 1)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]])
        for line in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def row(entry: Entry, ledger: Ledger) -> tuple[str, ...]:
    """One entry, as read by people."""
    star = "*" if entry == ledger.champion else " "
    if not entry.candidate:
        return (f"{star} {entry.version}", "", "damaged", "", "", "", entry.damage)
    when = datetime.fromtimestamp(entry.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    what = entry.kind + (f" to {entry.restores}" if entry.restores else "")
    if entry.state != "applied":
        what += f", {entry.state}"
    outcome = f"{entry.outcome}, forced" if entry.forced else entry.outcome
    return (
        f"{star} {entry.version}",
        when,
        what,
        entry.candidate,
        entry.actor,
        outcome or "-",
        entry.reason,
    )
