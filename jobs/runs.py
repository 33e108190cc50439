"""forger runs: every run, how it stands, and what to type next."""

from __future__ import annotations

import click

from jobs.options import storage_option

HEADINGS = ("run", "state", "kimg", "last tick", "health", "best", "next")


@click.command("runs")
@storage_option
def command(storage) -> None:
    """Show every run: its state, how far it is, how it does, and what to type next."""
    from pipeline.standing import runs_in
    from pipeline.storage import open_storage

    found = runs_in(open_storage(storage))
    if not found:
        click.echo(f"there is no run in {storage}")
        return
    rows = [HEADINGS, *(_row(each, storage) for each in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _row(each, storage: str) -> tuple[str, ...]:
    from jobs.train import shown_scores

    if each.damage:
        return (each.name, each.state, "", "", "", "", each.damage)
    best = " ".join(shown_scores(each.best)[:1])
    kimg = f"{each.nimg / 1000:.1f} of {each.total_nimg / 1000:g}"
    return (each.name, each.state, kimg, _age(each.tick_age_sec), each.health, best,
            _next(each, storage))  # fmt: skip


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "none yet"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def _next(each, storage: str) -> str:
    at = f" --storage {storage}" if storage != "runs" else ""
    match each.state:
        case "running":
            return ""
        case "complete":
            return f"forger promote {each.model}{at}" if each.registered else ""
        case "diverged":
            return "forger train FILE --fork, with lower learning rates"
    return f"forger resume {each.name}{at}"
