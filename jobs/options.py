"""What commands share: their options, and the bars that show how far they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

INTERRUPTED = 130  # the exit code after Ctrl-C, as shells have it

storage_option = click.option(
    "--storage",
    default="runs",
    show_default=True,
    help="Where the runs and the local registry are.",
)

stack_option = click.option(
    "--folder", default=".forger", show_default=True, help="Where all of the stack is."
)


def images_option(
    text: str, *, fewest: int = 100
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--images, from `fewest` on; `text` says what is done with them."""
    return click.option(
        "--images", type=click.IntRange(fewest), default=10_000, show_default=True, help=text
    )


JUDGING = (
    click.option(
        "--against", metavar="DATA", help="Prepared data; what MODEL was trained on, if left out."
    ),
    click.option(
        "--held-out",
        metavar="DATA",
        help="Prepared data that no generator was trained on: says what nearness to a training "
        "image is chance. Left out, the training images say it of each other.",
    ),
    click.option("--extractor", help="As in training, if left out; see `forger extractor list`."),
    click.option("--weights", help="The extractor's weights, where it needs them named."),
    click.option("--weights-sha256", help="What they must hash to."),
    click.option(
        "--workers",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="On Ray, where there is more than one or RAY_ADDRESS is set.",
    ),
    storage_option,
)


def judging(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of judging to a command, in their order."""
    for option in reversed(JUDGING):
        command = option(command)
    return command


class Progress:
    """A bar for each thing that is looked at."""

    def __init__(self) -> None:
        self._bar = None
        self._what = ""

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self.pause()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Moves the bar of `what`, or begins it."""
        if what != self._what:
            self.pause()
            self._what = what
            self._bar = click.progressbar(length=total, label=f"{what:<24}", file=sys.stderr)
            self._bar.__enter__()
        assert self._bar is not None
        self._bar.length = total
        self._bar.update(done - self._bar.pos)

    def pause(self) -> None:
        """Ends the bar's line, so that other words begin one of their own; the next call begins it
        anew.
        """
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar, self._what = None, ""
