"""What follows from rollbacks is a function of the records and of nimg, and never of the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rollbacks import (
    Rollback,
    lr_factor_at,
    order_seed_at,
    record_rollback,
    rollbacks,
    void,
)
from pipeline.storage import open_storage

NIMG = st.integers(0, 30)


@st.composite
def histories(draw) -> list[Rollback]:
    """Rollbacks of one run: each from somewhere past where the one before went, back to anywhere
    not behind it.
    """
    found, at = [], 0
    for number in range(1, draw(st.integers(0, 5)) + 1):
        lost = draw(st.integers(at, 30))
        at = draw(st.integers(0, lost))
        found.append(
            Rollback(
                number, lost, at, "why", draw(st.sampled_from([0.5, 0.25])), draw(st.booleans())
            )
        )
    return found


@given(histories(), NIMG, st.integers(0, 5))
def test_a_later_rollback_changes_nothing_of_what_it_keeps(history, nimg, num_before):
    """What was played at `nimg` with the rollbacks of then, and still counts, would be played the
    same today: so a run can be replayed from any checkpoint that counts.
    """
    then = history[:num_before]
    if not void(nimg + 1, len(then), history):  # the round that began at nimg still counts
        assert lr_factor_at(then, nimg) == lr_factor_at(history, nimg)
        assert order_seed_at(7, then, nimg) == order_seed_at(7, history, nimg)


@given(histories(), NIMG)
def test_remedies_only_ever_add_up_along_a_run(history, nimg):
    assert lr_factor_at(history, nimg + 1) <= lr_factor_at(history, nimg)


@given(histories())
def test_where_the_last_rollback_led_every_remedy_holds(history):
    if history:
        expected = 1.0
        for back in history:
            expected *= back.lr_factor
        assert lr_factor_at(history, history[-1].to_nimg) == expected


@given(histories(), st.integers(1, 5))
def test_each_new_order_is_another_one_and_the_same_at_every_place_it_holds(history, number):
    seeds = {order_seed_at(7, history[:n], history[n - 1].to_nimg)
             for n in range(1, len(history) + 1) if history[n - 1].new_order}  # fmt: skip
    assert len(seeds) == sum(back.new_order for back in history)
    assert 7 not in seeds


@given(histories(), NIMG, NIMG)
def test_what_counts_is_always_a_whole_beginning(history, nimg, earlier):
    """Of what one writer wrote, nothing before a line that counts is void; newest lines never."""
    for written in range(len(history) + 1):
        if earlier <= nimg and not void(nimg, written, history):
            assert not void(earlier, written, history)
    assert not void(nimg, len(history), history)


@given(NIMG, NIMG)
def test_without_rollbacks_nothing_changes(nimg, seed):
    assert lr_factor_at([], nimg) == 1.0
    assert order_seed_at(seed, [], nimg) == seed
    assert not void(nimg, 0, [])


def test_the_place_gone_back_to_counts_and_what_is_past_it_does_not():
    back = Rollback(1, from_nimg=300, to_nimg=200, reason="lost", lr_factor=0.5)
    assert [void(nimg, 0, [back]) for nimg in (199, 200, 201, 300)] == [False, False, True, True]
    assert [lr_factor_at([back], nimg) for nimg in (199, 200)] == [1.0, 0.5]
    assert order_seed_at(7, [back], 199) == 7 != order_seed_at(7, [back], 200)


def test_a_rollback_that_was_not_enough_holds_from_where_the_next_one_led():
    first = Rollback(1, from_nimg=300, to_nimg=200, reason="lost", lr_factor=0.5)
    second = Rollback(2, from_nimg=250, to_nimg=100, reason="lost", lr_factor=0.5)
    assert [lr_factor_at([first, second], n) for n in (99, 100, 200)] == [1.0, 0.25, 0.25]


@pytest.mark.parametrize("count", [3, 12])
def test_records_are_read_back_in_order_and_the_first_of_a_number_stands(tmp_path, count):
    storage = open_storage(str(tmp_path / "run"))
    written = [Rollback(n, 50 * n, 10 * n, "d/loss is nan", 0.5) for n in range(1, count + 1)]
    for back in written:
        record_rollback(storage, back)
    record_rollback(storage, replace(written[0], to_nimg=0))  # a zombie's
    assert rollbacks(storage) == written
