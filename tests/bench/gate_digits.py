"""The gate on real generators: how often it promotes an equal, and how often a better one.

    python -m tests.bench.gate_digits CHAMPION CHALLENGER [REPETITIONS]

Each repetition draws fresh latents. A/A: the challenger against itself, both at latents of their
own. A/B: the challenger against the champion, at common latents and at latents of their own.
"""

from __future__ import annotations

import sys
from collections import Counter

import torch

from pipeline.evidence import Evidence, Reference, judge
from pipeline.extraction import extract, forgeries, forget, here
from pipeline.find import find_generator
from pipeline.gate import GateRules, compare
from pipeline.ground import Ground, ground_for
from pipeline.snapshot import Snapshot

IMAGES = 10_000
STORAGE = "runs"
ROW = "{:<34}{:>9}{:>9}{:>9}{:>12}{:>12}{:>12}"


def run(arguments: list[str]) -> None:
    """Prints a row for each kind of comparison."""
    torch.set_num_threads(1)
    worse, better = (find_generator(name, storage=STORAGE) for name in arguments[:2])
    repetitions = int(arguments[2]) if len(arguments) > 2 else 20
    ground = ground_for(better, storage=STORAGE)
    reference = ground.reference(here, lambda what, done, total: None)
    outcomes: dict[str, list] = {"A/A, fresh latents": [], "A/B, common latents": [],
                                 "A/B, fresh latents": [], "B/A, common latents": []}  # fmt: skip
    for repetition in range(repetitions):
        b = _evidence(better, ground, reference, seed=2 * repetition)
        other_b = _evidence(better, ground, reference, seed=2 * repetition + 1)
        a = _evidence(worse, ground, reference, seed=2 * repetition)
        for name, champion, challenger, paired in (
            ("A/A, fresh latents", other_b, b, False),
            ("A/B, common latents", a, b, True),
            ("A/B, fresh latents", a, other_b, False),
            ("B/A, common latents", b, a, True),
        ):
            decided = compare(champion, challenger, reference, rules=GateRules(), paired=paired)
            nearer = _plug_in(challenger) < _plug_in(champion)
            outcomes[name].append((decided, nearer))
        print(f"{repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
    print(ROW.format("one-sided 5 %, 10k images", "promoted", "rejected", "open", "frechet yes",
                     "plug-in", "error"))  # fmt: skip
    for name, found in outcomes.items():
        counted = Counter(decided.outcome for decided, _ in found)
        checks = [decided.checks[0] for decided, _ in found]
        error = sum(check.standard_error for check in checks) / len(checks)
        print(ROW.format(name, counted["promoted"], counted["rejected"], counted["unresolved"],
                         sum(check.passed is True for check in checks),
                         sum(nearer for _, nearer in found), f"{error:.3g}"))  # fmt: skip


def _evidence(snapshot: Snapshot, ground: Ground, reference: Reference, *, seed: int) -> Evidence:
    look = forgeries(snapshot, ground.eye, ground.real, stream="bench", seed=seed, storage=STORAGE)
    found = extract(look, images=IMAGES, each=here)
    forget(look)
    return judge(found.vectors, found.labels, reference)


def _plug_in(evidence: Evidence) -> float:
    return evidence.frechet.influence.value


if __name__ == "__main__":
    run(sys.argv[1:])
