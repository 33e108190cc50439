"""A promotion log on paper, and a hand that edits what is written in one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from pipeline.entries import ENTRY, Entry, Head, Ledger, replay

MODEL = "digits"


@dataclass
class Paper:
    """A log on paper: what MLflow would hold, written by several hands at once."""

    versions: dict[int, dict[str, str]] = field(default_factory=dict)
    last: int = 0  # a deleted version's number is not given again

    def read(self, head: Head | None = None) -> Ledger:
        return replay(MODEL, self.versions.items(), head=head)

    def write(self, ledger: Ledger, op: str, **changes: object) -> int:
        """An entry by somebody whose last look at the log was `ledger`."""
        entry = Entry(
            model=MODEL, kind="promote", op=op, expects=ledger.tip, previous=ledger.tip_link,
            candidate="digits-candidates/1", sha256="a" * 64, manifest="b" * 64,
        )  # fmt: skip
        self.last += 1
        self.versions[self.last] = replace(entry, **changes).tags()
        return self.last


def edit_reason(tags: dict[str, str]) -> dict[str, str]:
    return {**tags, ENTRY: json.dumps(json.loads(tags[ENTRY]) | {"reason": "another"})}
