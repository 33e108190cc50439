"""Options that several commands share: what a generator is judged against, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

OPTIONS = (
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
    click.option(
        "--storage",
        default="runs",
        show_default=True,
        help="Where the runs and the local registry are.",
    ),
)


def judging(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds them to a command, in their order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
