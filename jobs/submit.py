"""forger submit: another verb, as a job on a cluster."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from jobs.following import connecting, submit_and_show

if TYPE_CHECKING:
    from pipeline.experiment import Experiment
    from pipeline.submit import Order

OF_EXPERIMENTS, OF_MODELS = ("train", "search"), ("evaluate", "promote")
LOCAL_ONLY = {"dry_run": "--dry-run", "show": "--show"}
PLACES = ("storage", "against", "held_out", "weights", "output")  # options that may name a folder
RULES = "rules.toml"


@click.command("submit", context_settings={"ignore_unknown_options": True})
@click.argument("verb", type=click.Choice([*OF_EXPERIMENTS, *OF_MODELS]))
@click.argument("words", metavar="...", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--wait/--detach", default=True, help="Show its log and end as it does.  [default: wait]"
)
@click.option("--env", "variables", metavar="NAME", multiple=True, help="Tell it this one too.")
@click.option(
    "--python",
    default="python",
    show_default=True,
    help="The interpreter on the cluster's nodes that has Ray, torch and MLflow.",
)
@connecting
def command(
    verb, words, wait, variables, python, allow_http, allow_unauthenticated
) -> None:  # fmt: skip
    """Run `forger VERB ...` as a job on the cluster at RAY_API_SERVER_ADDRESS.

    The words are the same as without `submit`. The experiment is checked here first; then this
    program's source and the experiment go to the cluster, where a run has one job at a time.
    Addresses (MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL, AWS_REGION) are passed on. Secrets are not:
    a cluster's nodes have their own. A job with runs in s3:// that knows no MLFLOW_TRACKING_URI
    ends at once with code 2. The token is Ray's: RAY_AUTH_TOKEN_PATH.

    Exit code: the job's own; 1 where it was stopped; 75 where the cluster cannot be reached, which
    says nothing of the job; 130 after Ctrl-C, which leaves the job alone.
    """
    inner = importlib.import_module(f"jobs.{verb}").command
    context = inner.make_context(f"forger submit {verb}", list(words))
    params = context.params
    for name, option in LOCAL_ONLY.items():
        if params.get(name):
            raise click.UsageError(f"{option} starts nothing: leave `submit` out")
    loaded = None
    if verb in OF_EXPERIMENTS:  # before the cluster is asked for anything
        if params["experiment"] is None:
            raise click.UsageError("EXPERIMENT.toml is missing")
        from pipeline.experiment_file import load_experiment

        loaded = load_experiment(
            params["experiment"], params["overrides"], for_search=verb == "search"
        ).experiment
    from pipeline.job_server import JobServer

    server = JobServer.connect(allow_http=allow_http, allow_unauthenticated=allow_unauthenticated)
    if loaded is None:
        order = _order_for_model(verb, context, here=server.here)
    else:
        order = _order_for_experiment(verb, context, loaded, here=server.here)
    submit_and_show(order, server, wait=wait, python=python, variables=variables)


def _order_for_experiment(
    verb: str, context: click.Context, experiment: Experiment, *, here: bool
) -> Order:
    from pipeline.submit import order_for

    fork = context.params.get("fork")
    run = experiment.search_name if verb == "search" else experiment.name
    if fork is not None:
        run = fork or f"{run}-fork"
    return order_for(verb, experiment, _options(context, {}), run=run, here=here)


def _order_for_model(verb: str, context: click.Context, *, here: bool) -> Order:
    """A job that trains nothing; any number of them may be at work."""
    from pipeline.submit import Order, placed

    params = context.params
    places = {name: params[name] for name in PLACES if params.get(name)}
    model, files = params["model"], {}
    if Path(model).exists():
        places["MODEL"] = model
    found = placed(places, here=here)
    if params.get("rules"):
        files[RULES] = Path(params["rules"]).read_text()
        found["rules"] = RULES
    words = [found.pop("MODEL", model), *_options(context, found)]
    slug = "".join(c if c.isalnum() else "-" for c in Path(model).name.lower()).strip("-")[:40]
    return Order(
        verb=verb,
        words=tuple(words),
        run=f"{verb}-{slug}",
        storage=found["storage"],
        alone=False,
        files=files,
    )


def _options(context: click.Context, changed: Mapping[str, str]) -> list[str]:
    """The options that a verb was given, as words again, with some `changed`."""
    words = []
    for param in context.command.params:
        name = param.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not isinstance(param, click.Option) or not (given or name in changed):
            continue
        value = changed.get(name, context.params[name])
        if isinstance(value, bool):
            words.append((param.opts if value else param.secondary_opts)[0])
        else:
            words.append(f"{param.opts[0]}={value}")
    return words
