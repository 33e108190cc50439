"""The page of a decision: both generators at the same latents, the checks, what they rest on."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.contest import Contest
from pipeline.ground import Ground
from pipeline.page import Page, render
from pipeline.shown import (
    check_rows,
    class_table,
    forged_grid,
    measure_table,
    neighbour_pictures,
)

NEIGHBOURS_NOTE = (
    "Above: the candidate's images. Below: the training images that its features are nearest to. "
    "A copy lies much nearer to one training image than to the next."
)


def decision_page(contest: Contest, decision: dict[str, Any], ground: Ground) -> str:
    """The HTML of a decision; `decision` is the record that the log's evidence digest is of."""
    theirs, ours = contest.challenger, contest.champion
    candidate, champion = decision["candidate"], decision["champion"]
    comparison, protocol = contest.comparison, contest.protocol
    measured = {"candidate": theirs.measures}
    grids = [forged_grid(theirs.look, caption=f"candidate {candidate['uri']}")]
    against = "the floors of a first champion"
    if ours is not None:
        measured = {"champion": ours.measures, **measured}
        against = f"champion {champion['candidate']} (entry {champion['entry']})"
        grids.insert(0, forged_grid(ours.look, caption=against))
    latents = "at the same latents" if contest.paired else "at latents of its own"
    forced = f" Promoted by force: {decision['reason']}" if decision["forced"] else ""
    page = Page(
        title=f"{decision['model']}: {candidate['uri']} against {against}",
        outcome=comparison.outcome,
        summary=[
            f"{comparison.num_images} images of each {latents}, against {protocol.num_reference} "
            f"real ones, on the features of {protocol.extractor}.",
            f"Attempt {decision['attempt']} of this model, at level {comparison.alpha:.2g}; "
            f"asked by {decision['actor']}.{forced}",
            comparison.reason,
        ],
        checks=check_rows(comparison.checks),
        grids=grids,
        tables=[measure_table(measured), *class_table(measured, ground.real.classes)],
        neighbours=neighbour_pictures(
            theirs.look, theirs.vectors, theirs.evidence, contest.reference, ground
        ),
        neighbours_note=NEIGHBOURS_NOTE,
        record=_record(decision, contest),
    )
    return render(page)


def _record(decision: dict[str, Any], contest: Contest) -> list[tuple[str, str]]:
    rows = [(f"candidate: {key}", str(value)) for key, value in decision["candidate"].items()]
    if decision["champion"]:
        rows += [(f"champion: {key}", str(value)) for key, value in decision["champion"].items()]
    rows.append(("protocol", contest.protocol.sha256))
    protocol = dataclasses.asdict(contest.protocol)
    rows += [(f"protocol: {key}", str(value)) for key, value in protocol.items()]
    return rows + [(f"rule: {key}", str(value)) for key, value in decision["rules"].items()]
