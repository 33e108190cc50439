"""The document of all settings says what the program does."""

from __future__ import annotations

from pipeline.settings import settings
from tests.settings_page import PAGE, comments, page


def test_the_document_of_settings_is_the_programs_own_and_names_them_all():
    written = PAGE.read_text()
    assert written == page(), "python -m tests.settings_page writes it again"
    known = settings().keys() - {"search"}  # a section
    whole = {key for key in known if key.rpartition(".")[0] not in known}  # no schedule's parts
    assert {"seed", "generator.lr", "search.trials"} <= whole
    assert [key for key in whole if f"| `{key}` |" not in written] == []


def test_a_fields_meaning_is_the_comments_above_and_beside_it_the_nearest_class_first():
    class Parent:
        # above,
        # in two lines.
        one: int = 0  # beside
        two: int = 1  # of the parent
        three: int = 2  # as it was

    class Child(Parent):
        two: int = 1  # of the child
        three: int = 3
        four: str = "# no comment"

    assert comments(Child) == {
        "one": "above, in two lines; beside",
        "two": "of the child",
        "three": "as it was",
        "four": "",
    }
