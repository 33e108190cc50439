"""The journal: each tick once, whoever wrote it and however often it was played."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.folder import Folder
from pipeline.journal import JournalLine, JournalWriter, Segment, lines


def line(nimg: int, mark: float = 0.0) -> JournalLine:
    return JournalLine(nimg, 1000 + nimg, 0.5, {"d/loss": mark})


def everything(nimg: int, token: int, rollbacks: int) -> bool:
    return True


def test_a_tick_that_is_replayed_is_written_once(tmp_path):
    storage = Folder(tmp_path)
    writer = JournalWriter(storage, last=-1)
    writer.add(line(10), line(20))
    writer.roll()
    writer.add(line(30))
    again = JournalWriter(storage, last=30)
    again.add(line(20, 1.0), line(30, 1.0), line(40, 1.0))
    found = list(lines(storage, after=-1, counts=everything))
    assert [(ln.nimg, ln.metrics["d/loss"]) for ln in found] == [
        (10, 0),
        (20, 0),
        (30, 0),
        (40, 1),
    ]


def test_lines_of_a_writer_that_was_fenced_off_do_not_count(tmp_path):
    """The second writer took over when the journal stood at 20; the first woke up and wrote on."""
    storage = Folder(tmp_path)
    zombie = JournalWriter(storage, last=-1, token=1)
    zombie.add(line(10, 1), line(20, 1))
    heir = JournalWriter(storage, last=20, token=2)
    heir.add(line(30, 2))
    zombie.add(line(30, 1), line(40, 1))
    heir.add(line(40, 2))

    def counts(nimg: int, token: int, rollbacks: int) -> bool:
        return token == 2 or nimg <= 20

    found = list(lines(storage, after=-1, counts=counts))
    assert [(ln.nimg, ln.metrics["d/loss"]) for ln in found] == [
        (10, 1),
        (20, 1),
        (30, 2),
        (40, 2),
    ]


def test_a_write_that_arrives_late_replaces_no_other_attempts_lines(tmp_path):
    """Two attempts under one lease resume at 10; the first one's write was on its way till now."""

    class Late(Folder):
        held: tuple[str, bytes] | None = None

        def write(self, name: str, data: bytes) -> None:
            if self.held is None:
                self.held = name, data
            else:
                super().write(name, data)

    storage = Late(tmp_path)
    JournalWriter(storage, last=10, token=1).add(line(20))
    again = JournalWriter(storage, last=10, token=1)
    for nimg in (20, 30, 40):
        again.add(line(nimg))
    assert storage.held is not None
    Folder(tmp_path).write(*storage.held)
    assert [ln.nimg for ln in lines(storage, after=-1, counts=everything)] == [20, 30, 40]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(-1, 40), st.integers(0, 3)
)
def test_reading_from_anywhere_gives_what_reading_all_gives_past_there(
    tmp_path_factory, gaps, after, rolled
):
    storage = Folder(tmp_path_factory.mktemp("journal"))
    nimg, writer = 0, JournalWriter(storage, last=-1)
    for number, gap in enumerate(gaps):
        nimg += gap
        writer.add(line(nimg))
        if number % (rolled + 1) == 0:
            writer.roll()
    whole = list(lines(storage, after=-1, counts=everything))
    assert [ln.nimg for ln in whole] == sorted({ln.nimg for ln in whole})
    some = list(lines(storage, after=after, counts=everything))
    assert some == [ln for ln in whole if ln.nimg > after]


def test_a_segment_is_named_after_its_writer():
    segment = Segment(64000, 3, 1, "0123abcd")
    assert segment.name == "journal/000000064000-000003-001-0123abcd.jsonl"
    assert Segment.of(segment.name) == segment
    before = Segment.of("journal/000000064000-000003-001.jsonl")  # as runs begun earlier have them
    assert before == Segment(64000, 3, 1)
    assert before.name == "journal/000000064000-000003-001.jsonl"
