"""forger stop: a job on the cluster ends at a checkpoint."""

from __future__ import annotations

import click

from jobs.following import connecting, follow_to_the_end


@click.command("stop")
@click.argument("job_id", metavar="ID")
@connecting
def command(job_id, allow_http, allow_unauthenticated) -> None:
    """Stop the job ID cleanly: its workers checkpoint at their next round, and nothing is lost.

    A job that has not begun to play ends at once.
    """
    from pipeline.job_server import JobServer
    from pipeline.submit import RUN, VERB

    server = JobServer.connect(allow_http=allow_http, allow_unauthenticated=allow_unauthenticated)
    job = server.job(job_id)
    if job.over:
        click.echo(f"job {job_id} is over already ({job.status})")
        return
    seen = len(server.log(job_id))
    server.stop(job_id)
    click.echo(f"job {job_id} is asked to stop; its workers checkpoint first")
    job = follow_to_the_end(server, job, seen=seen)
    if job.status != "STOPPED":
        click.echo(f"job {job_id} was over before it could be stopped ({job.status})")
    elif job.metadata.get(VERB) in ("train", "resume"):
        click.echo(f"stopped; to go on with {job.metadata[RUN]}: forger resume {job_id}")
    else:
        click.echo("stopped; the same forger submit goes on")
