"""The replay of the promotion log: pure logic under any interleaving of writers and any damage."""

from __future__ import annotations

import json
import time
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.entries import ENTRY, LINK, Entry, Head, replay
from tests.pipeline.paper import MODEL, Paper, edit_reason

# Each hand has looked at the log some entries ago, and writes an op that was not there then.
HANDS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 40)).map(lambda pair: (pair[0], f"op{pair[1]}")),
    min_size=1,
    max_size=25,
)


def written(hands: list[tuple[int, str]]) -> Paper:
    paper, looks = Paper(), [replay(MODEL, ())]
    for ago, op in hands:
        look = looks[max(0, len(looks) - 1 - ago)]
        if look.by_op(op) is None:
            paper.write(look, op)
            looks.append(paper.read())
    return paper


@given(HANDS)
def test_any_interleaving_of_writers_is_one_line_of_champions(hands):
    ledger = written(hands).read()
    expected = 0
    for entry in ledger.applied():
        assert entry.expects == expected
        expected = entry.version
    assert ledger.tip == expected
    ops = [entry.op for entry in ledger.applied()]
    assert len(ops) == len(set(ops))
    assert ledger.damages() == ()


@given(HANDS)
def test_what_took_effect_stays_so_whatever_is_written_later(hands):
    paper = written(hands)
    states = [entry.state for entry in paper.read().entries]
    for length in range(len(states)):
        before = replay(MODEL, [(v, t) for v, t in paper.versions.items() if v <= length])
        assert [entry.state for entry in before.entries] == states[:length]


@given(HANDS)
def test_of_those_who_saw_the_champion_the_first_one_takes_its_place(hands):
    paper = written(hands)
    look = paper.read()
    first = paper.write(look, "first")
    second = paper.write(look, "second")
    again = paper.write(look, "first")
    ledger = paper.read()
    assert ledger.champion is not None
    assert ledger.champion.version == first
    assert [ledger.entries[v - 1].state for v in (first, second, again)] == [
        "applied",
        "superseded",
        "repeated",
    ]


def edit_expects(tags: dict[str, str]) -> dict[str, str]:
    return {**tags, ENTRY: json.dumps(json.loads(tags[ENTRY]) | {"expects": 0})}


def rewrite(tags: dict[str, str]) -> dict[str, str]:
    """By somebody who knows how links are made."""
    record = json.loads(tags[ENTRY])
    record.pop("schema")
    return Entry(**record | {"sha256": "f" * 64}).tags()


def lose_record(tags: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if name != ENTRY}


def garble(tags: dict[str, str]) -> dict[str, str]:
    return {**tags, ENTRY: tags[ENTRY][:-7]}


def edit_weights(tags: dict[str, str]) -> dict[str, str]:
    return {**tags, "forger.sha256": "0" * 64}


def delete(tags: dict[str, str]) -> None:
    return None


DAMAGES = [delete, edit_reason, edit_expects, rewrite, lose_record, garble, edit_weights]


@given(HANDS, st.integers(0, 24), st.sampled_from(DAMAGES))
@settings(max_examples=400)
def test_damage_is_found_and_never_makes_another_generator_champion(hands, which, damage):
    paper = written(hands)
    whole = paper.read()
    assert whole.champion is not None
    version = which % paper.last + 1
    changed = damage(paper.versions.pop(version))
    if changed is not None:
        paper.versions[version] = changed
    ledger = paper.read(head=Head(whole.champion.version, whole.champion.link))
    of_effect = whole.entries[version - 1].state == "applied"
    if not of_effect and (damage is rewrite or (changed is None and version == paper.last)):
        assert ledger.champion == whole.champion  # nobody followed it, and nobody misses it
        return
    assert any(line.startswith(f"entry {version} ") for line in ledger.damages())
    assert ledger.tip == whole.champion.version
    if version != whole.champion.version:
        assert ledger.champion == whole.champion
        return
    before = [entry for entry in whole.applied() if entry.version < version]
    assert ledger.champion == (before[-1] if before else None)
    assert (ledger.in_doubt is None) == (changed is None)
    paper.write(ledger, "mended")
    mended = paper.read(head=Head(whole.champion.version, whole.champion.link))
    assert mended.champion is not None
    assert mended.champion.op == "mended"
    assert mended.in_doubt is None


def test_the_note_of_the_head_shows_that_the_last_entry_was_deleted():
    paper = Paper()
    for number in range(3):
        paper.write(paper.read(), f"op{number}")
    head = Head(3, paper.versions[3][LINK])
    del paper.versions[3]
    assert paper.read().damages() == ()
    assert paper.read(head=head).damages() == ("entry 3 was deleted",)


def test_a_version_that_somebody_registered_directly_is_no_champion():
    paper = Paper({1: {}, 2: {"forger.sha256": "a" * 64}}, last=2)
    assert paper.read().champion is None
    paper.write(paper.read(), "op")
    ledger = paper.read()
    assert ledger.champion is not None
    assert ledger.champion.version == 3
    assert ledger.damages() == (
        "entry 1 was not written by Forger's log",
        "entry 2 was not written by Forger's log",
    )


def test_an_entry_of_another_model_or_of_a_later_form_is_not_taken():
    paper = Paper()
    paper.write(paper.read(), "op", model="faces")
    assert paper.read().damages() == ("entry 1 was written for the model 'faces'",)
    later = {**paper.versions[1], ENTRY: '{"schema": 2}'}
    assert replay(MODEL, [(1, later)]).damages() == ("entry 1 has schema 2, not 1",)


def test_ten_times_as_many_entries_take_about_ten_times_as_long():
    def seconds(entries: int) -> float:
        paper, last = Paper(), replay(MODEL, ())
        for number in range(entries):
            version = paper.write(last, f"op{number}")
            last = replace(last, tip=version, tip_link=paper.versions[version][LINK])
        started = time.process_time()
        ledger = paper.read()
        assert len(ledger.applied()) == entries
        return time.process_time() - started

    assert seconds(10_000) < 30 * seconds(1_000)
