"""forger rollback: an older champion back in charge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobs.options import storage_option

if TYPE_CHECKING:
    from pipeline.entries import Entry


@click.command("rollback")
@click.argument("model", metavar="MODEL")
@click.option(
    "--to",
    type=click.IntRange(1),
    metavar="VERSION",
    help="Of MODEL; the generator before the present one, where left out.",
)
@click.option("--reason", required=True, help="Why; it is recorded.")
@storage_option
def command(model, to, reason, storage) -> None:
    """Put an older champion of MODEL back in charge, in one move.

    MODEL is a model's name: digits, or models:/digits. What goes back in charge was promoted once,
    so no gate is asked again; but its files are loaded and checked first. The same command typed
    again goes back no further.
    """
    from gan.config import ConfigError
    from jobs.history import model_name
    from pipeline.backend import backend
    from pipeline.promotions import PromotionLog, rollback, rollback_op, who
    from pipeline.registry import load_registered

    where = backend(storage)
    log, actor = PromotionLog(where, model_name(model)), who()

    def verify(entry: Entry) -> None:
        found = load_registered(where, f"models:/{entry.model}/{entry.version}")
        if found.sha256 != entry.sha256:
            raise ConfigError([f"models:/{entry.model}/{entry.version} holds other weights "
                               f"({found.sha256[:12]}) than were promoted "
                               f"({entry.sha256[:12]})"])  # fmt: skip

    op = rollback_op(log.read(), to=to, actor=actor, reason=reason)
    done = rollback(log, to=to, actor=actor, reason=reason, op=op, verify=verify)
    assert done.entry is not None
    if not done.rounds:
        click.echo("this was done already; give another reason to go further back, or --to")
    click.echo(
        f"models:/{log.model}@champion is version {done.entry.version}: "
        f"{done.entry.candidate} again, as promoted in {done.entry.restores}"
    )
