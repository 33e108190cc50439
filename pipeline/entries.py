"""The promotion log as pure data: entries, the chain that links them, and how they are replayed.

A promotion is decided against a champion and then written as an entry that names that champion.
Several may have been decided against the same one; the log takes them in the order of their
version numbers, and only the first of them takes effect. So whoever replays the same log finds the
same champion, and nobody had to hold a lock while a gate was measuring for minutes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

Kind = Literal["promote", "rollback"]
State = Literal["applied", "superseded", "repeated", "damaged"]

SCHEMA = 1
ENTRY = "forger.entry"  # the entry itself, as canonical JSON
LINK = "forger.link"  # its sha256
WEIGHTS = "forger.sha256"
MANIFEST = "forger.manifest"
OVERTAKEN = "forger.overtaken"  # of an entry that never took effect, for readers of versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One decision of the log. What `replay` finds out about it is in the last four fields."""

    model: str
    kind: Kind
    op: str  # who repeats a command repeats its op: it takes effect once
    expects: int  # version of the entry that was the champion when this was decided; 0 for none
    candidate: str  # "NAME-candidates/7"
    sha256: str  # of the weights
    manifest: str  # sha256 of the artifact's manifest.json
    copied: str = ""  # names of the candidate's tags that were copied, with spaces between
    lineage: str = ""  # digest of those tags
    restores: int = 0  # rollback: version of the promotion whose generator is back; else 0
    decision: str | None = None  # the gate's MLflow run; None for a rollback
    outcome: str = ""  # what the gate said
    evidence: str = ""  # sha256 of the gate's record
    protocol: str = ""  # digest of how it measured
    actor: str = ""  # as the client says; an MLflow server does not record it
    reason: str = ""
    forced: bool = False  # appended although the gate did not say yes
    time_ms: int = 0  # by the clock of whoever wrote it
    previous: str = ""  # link of the entry that `expects` names; "" for none
    version: int = 0
    link: str = ""
    state: State = "superseded"
    damage: str = ""  # why it is damaged, to be read after "entry 3 "

    @property
    def origin(self) -> int:
        """Version of the promotion that brought this generator."""
        return self.restores or self.version

    @property
    def takes_effect(self) -> bool:
        """Whether it was, or is, the champion."""
        return self.state == "applied"

    def content(self) -> str:
        """All that was decided, as canonical JSON. `link` is its sha256, and `previous` inside it
        the link before: a rewritten entry breaks the chain.
        """
        record = {"schema": SCHEMA} | {name: getattr(self, name) for name in CONTENT}
        return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def carrying(self, tags: Mapping[str, str]) -> Entry:
        """The entry that vouches for these tags of the candidate, as far as they are Forger's."""
        names = sorted(name for name in tags if name.startswith("forger.") and name not in OWN)
        return replace(self, copied=" ".join(names), lineage=_digest_of(names, tags))

    def tags(self) -> dict[str, str]:
        """How it is written: tags of one model version, beside those that were copied."""
        content = self.content()
        return {ENTRY: content, LINK: digest(content), WEIGHTS: self.sha256} | (
            {MANIFEST: self.manifest} if self.manifest else {}
        )


OWN = (ENTRY, LINK, OVERTAKEN)  # what a copy of a version does not take along
FOUND = ("version", "link", "state", "damage")
CONTENT = tuple(f.name for f in fields(Entry) if f.name not in FOUND)


def digest(text: str) -> str:
    """sha256 of UTF-8 text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of(names: Iterable[str], tags: Mapping[str, str]) -> str:
    return digest(json.dumps({name: tags.get(name, "") for name in names}, sort_keys=True))


@dataclass(frozen=True, slots=True)
class Head:
    """The entry that was last made champion, as noted beside the log."""

    version: int
    link: str

    @classmethod
    def parse(cls, text: str | None) -> Head | None:
        """From "version:link"; None where there is none or it says nothing."""
        version, _, link = (text or "").partition(":")
        return cls(int(version), link) if version.isdigit() else None

    def __str__(self) -> str:
        return f"{self.version}:{self.link}"


@dataclass(frozen=True, slots=True)
class Ledger:
    """A log that was replayed."""

    entries: tuple[Entry, ...]  # by version, ascending
    champion: Entry | None  # the last one that took effect and is whole
    tip: int  # what the next entry must expect; 0 at the beginning
    tip_link: str
    missing: tuple[int, ...]  # versions that were deleted

    @property
    def in_doubt(self) -> Entry | None:
        """The damaged entry that seems to be the champion; None where all is clear."""
        if self.champion is not None and self.tip == self.champion.version:
            return None
        return next((e for e in self.entries if e.version == self.tip), None)

    def by_op(self, op: str) -> Entry | None:
        """The entry of this op: the one that took effect, or else the first."""
        found = [entry for entry in self.entries if entry.op == op]
        return next((e for e in found if e.takes_effect), found[0] if found else None)

    def at(self, version: int) -> Entry | None:
        """The entry of this version."""
        return next((entry for entry in self.entries if entry.version == version), None)

    def applied(self) -> tuple[Entry, ...]:
        """The champions, oldest first; the last one is in charge."""
        return tuple(entry for entry in self.entries if entry.takes_effect)

    def damages(self) -> tuple[str, ...]:
        """What is wrong with the log, one readable line each."""
        edited = [(e.version, f"entry {e.version} {e.damage}") for e in self.entries if e.damage]
        deleted = [(version, f"entry {version} was deleted") for version in self.missing]
        return tuple(line for _, line in sorted(edited + deleted))


def replay(
    model: str, versions: Iterable[tuple[int, Mapping[str, str]]], *, head: Head | None = None
) -> Ledger:
    """Finds the champion: (version, tags) of every version of `model`, in any order, to a Ledger.

    An entry takes effect where it expects the one that took effect before it, and an op takes
    effect once. An entry that was deleted or edited still takes its place in the line where a
    whole later entry expects it, or `head` names it: whoever wrote that had seen it in charge. So
    damage to an old entry never changes the champion, and damage to the champion makes no loser
    the champion.
    """
    read = [_read(model, version, tags) for version, tags in sorted(versions)]
    whole = {entry.version: entry for entry in read if not entry.damage}
    seen_applied = _seen_applied(whole.values(), head)
    read = [_compare(entry, seen_applied.get(entry.version)) for entry in read]
    there = {entry.version: entry for entry in read}
    end = max([*there, *seen_applied], default=0)
    missing = tuple(version for version in range(1, end + 1) if version not in there)
    successor = {  # what is known to have followed an entry
        e.expects: e.version for e in read if not e.damage and e.version in seen_applied
    }
    entries, ops = [], set()
    tip, tip_link, champion = 0, "", None
    for version in range(1, end + 1):
        entry = there.get(version)
        if entry is None or entry.damage:
            fits = entry is not None and entry.expects == tip and entry.op not in ops
            if version in seen_applied or (fits and tip not in successor):
                tip, tip_link = version, seen_applied.get(version, entry.link if entry else "")
                ops |= {entry.op} if entry else set()
        if entry is None:
            continue
        if entry.damage:
            entry = replace(entry, state="damaged")
        elif entry.op in ops:
            entry = replace(entry, state="repeated")
        elif entry.expects == tip:
            champion = entry = replace(entry, state="applied")
            tip, tip_link = version, entry.link
            ops.add(entry.op)
        entries.append(entry)
    return Ledger(tuple(entries), champion, tip, tip_link, missing)


def _seen_applied(whole: Iterable[Entry], head: Head | None) -> dict[int, str]:
    """Versions that somebody saw in charge, and the links they had then; the first witness
    counts.
    """
    seen: dict[int, str] = {}
    for entry in whole:
        if entry.expects:
            seen.setdefault(entry.expects, entry.previous)
    if head is not None:
        seen.setdefault(head.version, head.link)
    return seen


def _read(model: str, version: int, tags: Mapping[str, str]) -> Entry:
    """The entry in a version's tags, with its damage where it is not as it was written."""
    blank = Entry(
        model=model, kind="promote", op=f"version {version}", expects=-1, candidate="",
        sha256=tags.get(WEIGHTS, ""), manifest="", version=version, link=tags.get(LINK, ""),
    )  # fmt: skip
    if ENTRY not in tags:
        said = "has lost its record" if LINK in tags else "was not written by Forger's log"
        return replace(blank, damage=said)
    try:
        record = json.loads(tags[ENTRY])
        if record["schema"] != SCHEMA:
            return replace(blank, damage=f"has schema {record['schema']}, not {SCHEMA}")
        entry = Entry(**{name: record[name] for name in CONTENT})
    except (ValueError, KeyError, TypeError) as error:
        return replace(blank, damage=f"cannot be read ({type(error).__name__})")
    entry = replace(entry, version=version, link=blank.link)
    if digest(tags[ENTRY]) != entry.link:
        return replace(entry, damage="was edited after it was written")
    if entry.model != model:
        return replace(entry, damage=f"was written for the model {entry.model!r}")
    if not 0 <= entry.expects < version:
        return replace(entry, damage=f"expects entry {entry.expects}, which was not there yet")
    for tag, value in ((WEIGHTS, entry.sha256), (MANIFEST, entry.manifest)):
        if tags.get(tag, "") != value:
            return replace(entry, damage=f"has the tag {tag} edited")
    if entry.lineage and entry.lineage != _digest_of(entry.copied.split(), tags):
        return replace(entry, damage=f"has one of these tags edited: {entry.copied}")
    return entry


def _compare(entry: Entry, link: str | None) -> Entry:
    """A whole entry must be the one that the next one followed, not one written over it."""
    if entry.damage or link is None or link == entry.link:
        return entry
    return replace(entry, damage="was rewritten: what came after it followed another one")


def as_record(entry: Entry) -> dict[str, object]:
    """Plain data for JSON, with what replay found."""
    return asdict(entry)
