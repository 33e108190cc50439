"""What a check found: one line that says what, found, needed, remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gan.config import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `needed` and `remedy` are for what is wrong; "skipped" is what
    could not be looked at because of something else that is wrong.
    """

    what: str
    state: Literal["good", "wrong", "skipped"]
    found: str
    needed: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        parts = [self.found]
        if self.needed:
            parts.append(f"needed: {self.needed}")
        if self.remedy:
            parts.append(f"remedy: {self.remedy}")
        return f"{self.state:<8}{self.what:<17}{'; '.join(parts)}"


def good(what: str, found: str) -> Finding:
    """Something that is as it must be."""
    return Finding(what=what, state="good", found=found)


def wrong(what: str, found: str, *, needed: str, remedy: str) -> Finding:
    """Something that the run would fail on, or waste time on."""
    return Finding(what=what, state="wrong", found=found, needed=needed, remedy=remedy)


def skipped(what: str, because: str) -> Finding:
    """Something that was not looked at."""
    return Finding(what=what, state="skipped", found=f"not looked at: {because}")


def refused(what: str, error: ConfigError, *, needed: str, remedy: str) -> list[Finding]:
    """A finding for each mistake, with the remedy that it names, or else this one."""
    found = []
    for mistake in error.mistakes:
        text, _, named = mistake.partition("; ")
        found.append(wrong(what, text, needed=needed, remedy=named or remedy))
    return found
