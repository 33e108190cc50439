"""What commands share that talk to a cluster: the options of the connection, and a job's log."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from jobs.options import INTERRUPTED

if TYPE_CHECKING:
    from pipeline.job_server import Job, JobServer

STOPPED = 1  # the exit code where the job has none of its own

CONNECTION = (
    click.option(
        "--allow-http", is_flag=True, help="Talk plain HTTP to another machine: the token is open."
    ),
    click.option(
        "--allow-unauthenticated",
        is_flag=True,
        help="Talk to a head on another machine that asks for no token.",
    ),
)


def connecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of the connection to a command."""
    for option in reversed(CONNECTION):
        command = option(command)
    return command


def follow_to_the_end(server: JobServer, job: Job, *, seen: int = 0) -> Job:
    """Shows the job's log past its first `seen` characters until it is over. Ctrl-C leaves it."""
    from pipeline.job_log import follow

    try:
        return follow(
            server,
            job.id,
            wrote=lambda text: click.echo(text, nl=False),
            said=lambda text: click.echo(f"-- {text}", err=True),
            seen=seen,
        )
    except KeyboardInterrupt:
        click.echo(
            f"\nthe job goes on; forger logs {job.id} -f follows it, forger stop {job.id} stops "
            f"it at a checkpoint",
            err=True,
        )
        sys.exit(INTERRUPTED)


def end_as(job: Job) -> None:
    """Ends this command as the job ended: with its exit code, or the reason why it has none."""
    from pipeline.submit import RUN, VERB

    if job.status == "SUCCEEDED":
        return
    if job.status == "STOPPED":
        again = job.metadata.get(VERB) in ("train", "resume")
        then = f"forger resume {job.id}" if again else "the same forger submit"
        click.echo(f"job {job.id} was stopped; {then} goes on with {job.metadata.get(RUN)}")
        sys.exit(STOPPED)
    if job.exit_code is None:
        click.echo(f"error: job {job.id} could not run: {job.message}", err=True)
    else:
        click.echo(f"error: job {job.id} failed with exit code {job.exit_code}", err=True)
    sys.exit(job.exit_code or 1)


def submit_and_show(
    order: Any, server: JobServer, *, wait: bool, python: str = "python", variables: Any = ()
) -> None:
    """Starts the order as a job; shows its log and ends as it does, or says how to look at it."""
    from pipeline.submit import submit

    job = submit(server, order, python=python, variables=variables)
    click.echo(f"job      {job.id} on {server.address}")
    if wait:
        end_as(follow_to_the_end(server, job))
    else:
        click.echo(f"follow   forger logs {job.id} -f")
        click.echo(f"stop     forger stop {job.id}")
