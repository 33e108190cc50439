"""forger resume: a run goes on by its own record."""

from __future__ import annotations

import click

from jobs.options import storage_option
from jobs.train import Screen, going_on, print_end, resume_command


@click.command("resume")
@click.argument("name", metavar="RUN")
@storage_option
def command(name, storage) -> None:
    """Go on with RUN as it was begun, or deliver what MLflow did not take.

    RUN is a name that `forger runs` shows. No experiment file is needed: the run's own record has
    every setting. Paths in it hold in the folder where the run was begun.
    """
    from pipeline.run import Run
    from pipeline.storage import open_storage

    run = Run.at(open_storage(storage).below(name))
    click.echo(f"{name}: loading torch, ray and mlflow")
    from pipeline.train import resume

    screen = Screen(run.experiment.turns.total_kimg)
    with going_on():
        trained = resume(storage, name, screen.watcher())
    print_end(trained, resume_command(trained.run))
