"""The `forger` command: its verbs, and errors printed for people."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import click

from gan.config import ConfigError

VERBS = {  # the first line of help is kept here, so that `forger --help` imports none of them
    "prepare": "Make checksummed shards of images.",
    "check": "Look at all that an experiment needs, before it costs anything.",
    "train": "Train an experiment and register its best generator as a candidate.",
    "runs": "Show every run: its state, how far it is, what to type next.",
    "resume": "Go on with a run by its own record, or deliver what MLflow did not take.",
    "search": "Try a space of experiments and register the best generator as a candidate.",
    "submit": "Run a verb as a job on a cluster.",
    "jobs": "Show what was submitted to the cluster.",
    "logs": "Show what a job wrote.",
    "stop": "Stop a job at a checkpoint.",
    "up": "Start Ray, MLflow and an S3 store on this machine, for `submit` and the rest.",
    "down": "Stop what `up` started.",
    "report": "Show a search as one page.",
    "evaluate": "Judge a generator against a data set, with error bars and pictures.",
    "promote": "Judge a candidate against the champion, and promote it if it passes.",
    "history": "Show who moved a model's champion, when and why.",
    "rollback": "Put an older champion back in charge.",
    "reproduce": "Train a registered generator again, and compare bit for bit.",
    "sample": "Draw images from a generator.",
    "export": "Write a generator as ONNX.",
    "modes": "Count the modes that a recipe finds: a ring, a grid, stacked digits.",
    "extractor": "List feature extractors, or train one on a data set of your own.",
}


class Verbs(click.Group):
    """A group whose commands are the files of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f"jobs.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forger")
def forger() -> None:
    """G forges, D polices: distributed GAN training on Ray, tracked and registered in MLflow."""


def main() -> None:
    """Runs the command. The user's mistakes end with exit code 2, storage that failed and a run
    that was taken over with 1, a cluster that does not answer with 75, without a traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        forger(prog_name="forger")
    except ConfigError as error:
        one = len(error.mistakes) == 1
        click.echo(
            "error: " + ("" if one else f"{len(error.mistakes)} mistakes"), err=True, nl=not one
        )
        for mistake in error.mistakes:
            click.echo(mistake if one else f"  - {mistake}", err=True)
        sys.exit(2)
    except Exception as error:
        said = _said_for_people(error)
        if said is None:
            raise
        words, code = said
        click.echo(f"error: {words}", err=True)
        sys.exit(code)


def _said_for_people(error: Exception) -> tuple[str, int] | None:
    """Words and exit code for an error that is no fault of the program's."""
    from pipeline.job_server import Unreachable
    from pipeline.lease import FencedError
    from pipeline.storage import StorageError, StorageMistake

    if isinstance(error, StorageMistake):
        return str(error), 2
    if isinstance(error, StorageError):
        return str(error), 1
    if isinstance(error, FencedError):
        return f"another command took over this run: {error}", 1
    if isinstance(error, Unreachable):
        return str(error), os.EX_TEMPFAIL
    return None


if __name__ == "__main__":
    main()
