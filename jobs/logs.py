"""forger logs: what a job on the cluster wrote."""

from __future__ import annotations

import click

from jobs.following import connecting, end_as, follow_to_the_end


@click.command("logs")
@click.argument("job_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over; end as it does.")
@connecting
def command(job_id, follow, allow_http, allow_unauthenticated) -> None:
    """Show the log of the job ID, which `forger jobs` lists."""
    from pipeline.job_server import JobServer

    server = JobServer.connect(allow_http=allow_http, allow_unauthenticated=allow_unauthenticated)
    job = server.job(job_id)
    if follow:
        end_as(follow_to_the_end(server, job))
    else:
        click.echo(server.log(job_id), nl=False)
