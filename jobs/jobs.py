"""forger jobs: what was submitted to the cluster, and how it stands."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from jobs.following import connecting

if TYPE_CHECKING:
    from pipeline.job_server import Job

HEADINGS = ("job", "verb", "run", "state", "began", "took", "next")


@click.command("jobs")
@connecting
def command(allow_http, allow_unauthenticated) -> None:
    """Show every job on the cluster at RAY_API_SERVER_ADDRESS: its state, what to type next."""
    from pipeline.job_server import JobServer

    server = JobServer.connect(allow_http=allow_http, allow_unauthenticated=allow_unauthenticated)
    found = server.jobs()
    if not found:
        click.echo(f"no job was submitted to {server.address}")
        return
    rows = [HEADINGS, *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _row(job: Job) -> tuple[str, ...]:
    from pipeline.submit import RUN, VERB

    verb, began = job.metadata.get(VERB, ""), (job.started_ms or 0) / 1000
    ended = job.ended_ms / 1000 if job.ended_ms else time.time()
    state = job.status.lower() + (f" ({job.exit_code})" if job.exit_code else "")
    then = ""
    if not job.over:
        then = f"forger logs {job.id} -f"
    elif job.status != "SUCCEEDED":
        again = job.status == "STOPPED" and verb in ("train", "resume")
        then = f"forger {'resume' if again else 'logs'} {job.id}"
    clock = time.strftime("%Y-%m-%d %H:%M", time.localtime(began)) if began else ""
    took = f"{max(0, ended - began) / 60:.1f} min" if began else ""
    return (job.id, verb, job.metadata.get(RUN, ""), state, clock, took, then)
