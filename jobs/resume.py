"""forger resume: a run goes on by its own record, here or as a job on a cluster."""

from __future__ import annotations

import os

import click

from jobs.following import connecting, submit_and_show
from jobs.options import storage_option
from jobs.train import Screen, going_on, print_end, resume_command

ADDRESS = "RAY_API_SERVER_ADDRESS"


@click.command("resume")
@click.argument("name", metavar="RUN|JOB")
@storage_option
@connecting
def command(name, storage, allow_http, allow_unauthenticated) -> None:
    """Go on with RUN as it was begun, or deliver what MLflow did not take.

    RUN is a name that `forger runs` shows. No experiment file is needed: the run's own record has
    every setting. Paths in it hold in the folder where the run was begun. With the id of a JOB
    that `forger jobs` shows, its run goes on as a new job on the cluster.
    """
    from pipeline.run import RECORD, Run
    from pipeline.storage import open_storage

    if os.environ.get(ADDRESS) and not open_storage(storage).exists(f"{name}/{RECORD}"):
        from pipeline.job_server import JobServer
        from pipeline.submit import resume_order

        server = JobServer.connect(
            allow_http=allow_http, allow_unauthenticated=allow_unauthenticated
        )
        submit_and_show(resume_order(server.job(name)), server, wait=True)
        return
    run = Run.at(open_storage(storage).below(name))
    click.echo(f"{name}: loading torch, ray and mlflow")
    from pipeline.train import resume

    screen = Screen(run.experiment.turns.total_kimg)
    with going_on():
        trained = resume(storage, name, screen.watcher())
    print_end(trained, resume_command(trained.run))
