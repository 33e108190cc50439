"""The page of a search: what it says, that it is safe and alone, and that a browser draws it."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from pipeline.search_figures import curves, family
from pipeline.search_page import search_page
from pipeline.search_shown import (
    Axis,
    axis_of,
    duration,
    front,
    images,
    log_ticks,
    plus_minus,
    ticks,
    trials_named,
)
from pipeline.search_words import summary, title
from tests.pipeline import shown_search
from tests.pipeline.shown_search import GAMMA, HOSTILE, LR, SEARCHES, STEPS

LIMIT_BYTES = 8_000_000


class Parts(HTMLParser):
    """The tags of a page with their attributes, and the text that is read."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        self.text += "" if self._silent else data


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Each search's page, rendered once."""
    return {name: search_page(search()) for name, search in SEARCHES.items()}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_page_is_alone_and_not_too_large(pages, name):
    parts = Parts(pages[name])
    assert len(pages[name].encode()) < LIMIT_BYTES
    for tag, attributes in parts.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for source in ("src", "srcset", "data", "poster", "background"):
            assert (attributes.get(source) or "data:").startswith("data:"), (tag, attributes)
    styles = re.findall(r"<style>(.*?)</style>", pages[name], re.S)
    assert not any("url(" in style or "@import" in style for style in styles)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_library_is_there_once_where_there_are_figures(pages, name):
    assert pages[name].count("* plotly.js v") == (0 if name == "empty" else 1)
    if name != "empty":  # plotly's bar of buttons has one that uploads the figure
        assert pages[name].count('"displayModeBar": false') == pages[name].count("Plotly.newPlot(")


@pytest.mark.parametrize("name", ["asha", "population", "two objectives", "running"])
def test_every_trial_is_in_the_table_with_its_state_and_reason(pages, name):
    text = " ".join(Parts(pages[name]).text.split())
    rows = re.findall(r"<tr.*?</tr>", pages[name].partition("<tbody>")[2], re.S)
    for trial in SEARCHES[name]().trials:
        row = next(r for r in rows if f'data-order="{trial.number}"' in r.partition("</td>")[0])
        assert trial.state in row
        assert html.escape(trial.reason, quote=False) in row.replace("&#39;", "'")
        assert trial.reason in text


def test_no_text_of_a_search_becomes_html(pages):
    parts = Parts(pages["hostile"])
    assert HOSTILE in parts.text
    assert HOSTILE not in pages["hostile"]
    assert not any(attributes.get("src") == "x" for _, attributes in parts.tags)
    assert not any((a.get("href") or "").startswith("javascript:") for _, a in parts.tags)
    drawn = re.findall(r"Plotly\.newPlot\((.*?)\);?\s*(?:}|</script>)", pages["hostile"], re.S)
    assert drawn
    assert not any("<script" in figure or "<img" in figure for figure in drawn)
    # plotly reads some HTML itself, so its texts hold an escaped one (as JSON: \u0026lt;).
    assert any(r"\u0026lt;script" in figure or "&lt;script" in figure for figure in drawn)


def test_the_headline_names_the_best_its_score_and_its_ties():
    search = shown_search.asha()
    second = search.finalists[1].number
    lines = " ".join(summary(search))
    named = f"trial {search.best} is the best, tied with trial {second}"
    assert title(search) == f"digits-search: {named}"
    assert "3.247 ± 0.070" in lines
    assert "4.317 ± 0.090 in the same judgement" in lines
    assert f"{100 * (1 - 3.247 / 4.317):.0f} % lower" in lines


def test_a_best_that_is_no_better_than_the_files_own_is_called_within_the_noise():
    search = shown_search.asha()
    first, *_ = search.finalists
    own = shown_search.judged(0, (3.3, 3.4), first.mean + 0.1, 0.09, True)
    found = shown_search.shown(list(search.trials), best=search.best, finalists=(first, own))
    assert any("(trial 0)" in s and "within the noise" in s for s in summary(found))


def test_a_population_is_not_compared_with_a_start_that_saw_fewer_images():
    lines = summary(shown_search.population())
    assert any("too few to compare" in line for line in lines)
    assert not any("% lower" in line for line in lines)


def test_a_search_under_way_has_a_leader_and_no_best():
    search = shown_search.running()
    leader = search.ranked[0]
    assert search.leader is leader
    assert title(search) == "digits-search: the search is not over yet"
    assert summary(search)[0].startswith(f"Trial {leader.number} leads")


def test_what_cannot_be_drawn_is_a_sentence(pages):
    assert "(0 of 5 needed) to say which settings matter" in pages["empty"]
    assert "(3 of 5 needed) to say which settings matter" in pages["running"]
    assert "newPlot" not in pages["empty"]
    for sentence in ("No trial was judged yet.", "No samples were drawn yet.",
                     "No trial was stopped, diverged or failed."):  # fmt: skip
        assert sentence in pages["empty"]


def test_a_search_whose_trials_all_failed_has_a_page():
    search = shown_search.asha()
    for trial in search.trials:
        trial.state, trial.reason, trial.readings = "failed", "out of memory", []
    page = search_page(shown_search.shown(list(search.trials), noise={}))
    assert "no best trial was named" in page
    assert "No trial has a score yet." in page


def test_the_front_is_what_nothing_beats_in_both():
    search = shown_search.two_objectives()
    both = {
        t.number: (best.values["fd"], best.values["diversity"])
        for t in search.trials
        for best in [min(t.readings, key=lambda r: r.values["fd"])]
    }
    beaten = {
        n for n, (x, y) in both.items()
        if any(a <= x and b <= y and (a, b) != (x, y) for a, b in both.values())
    }  # fmt: skip
    assert {trial.number for trial in front(search)} == both.keys() - beaten


def test_the_best_so_far_never_rises_and_ends_at_the_images_that_were_spent():
    search = shown_search.asha()
    figure = curves.best_so_far(search)
    assert figure is not None
    line = next(trace for trace in figure.data if trace.name == "best so far")
    assert list(line.y) == sorted(line.y, reverse=True)
    assert line.x[-1] * 1000 == sum(trial.spent_nimg for trial in search.trials)


def test_the_ancestry_of_the_best_is_its_parents_and_theirs():
    search = shown_search.population()
    tree = family.family_tree(search)
    assert search.leader is not None
    assert tree is not None
    line = search.ancestry(search.leader)
    assert [trial.generation for trial in line] == [0, 1, 2, 3]
    assert all(child.parent == parent.number for parent, child in pairwise(line))
    bold = [t for t in tree.data if t.line.width and t.line.width >= 15]
    assert len(bold) == len(line)


def test_a_reading_that_says_diverged_stretches_no_axis():
    search = shown_search.asha()
    before = search.scale("fd")
    diverged = next(t for t in search.trials if t.state == "diverged")
    diverged.readings[0].values["fd"] = 1e9
    assert shown_search.shown(list(search.trials)).scale("fd").high <= before.high


@pytest.mark.parametrize(
    ("dimension", "value", "position"),
    [(LR, 5e-4, 0.0), (LR, 2e-3, 0.5), (LR, 8e-3, 1.0), (STEPS, 1, 0.25), (STEPS, 2, 0.75),
     (GAMMA, 0.1, 1 / 3)],
)  # fmt: skip
def test_an_axis_puts_values_where_the_space_draws_them(dimension, value, position):
    assert axis_of(dimension, []).at(value) == pytest.approx(position)


def test_an_axis_has_room_for_what_the_space_could_not_draw():
    assert axis_of(LR, [1e-4]).at(1e-4) == 0.0
    assert axis_of(LR, [0.0]).at(0.0) == 0.0
    assert axis_of(STEPS, [4, [1], [1]]).options == (1, 2, 4, [1])


def test_ticks_are_round_and_inside():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert log_ticks(5e-4, 8e-3) == [5e-4, 1e-3, 2e-3, 5e-3]
    assert log_ticks(1e-9, 1e3)[0] == 1e-9
    for low, high in ((0.3, 0.31), (1e-7, 3e-7), (-5, 400)):
        assert all(low <= tick <= high for tick in ticks(low, high))
        assert 2 <= len(ticks(low, high)) <= 7
    assert Axis("", True, 1, 100).ticks()[0] == (0.0, "1")


def test_numbers_are_told_as_finely_as_they_are_known():
    assert plus_minus(12.3456, 0.42) == "12.35 ± 0.42"
    assert plus_minus(123.4, 15) == "123 ± 15"
    assert plus_minus(0.00123, 0.00004) == "0.001230 ± 0.000040"
    assert plus_minus(1.5, 0) == "1.5"
    assert [images(n) for n in (800, 19_200, 1_920_000)] == ["800", "19.2 thousand",
                                                             "1.92 million"]  # fmt: skip
    assert [duration(s) for s in (41, 738, 8640)] == ["41 s", "12.3 min", "2.4 h"]
    assert trials_named([3]) == "trial 3"
    assert trials_named([3, 5, 8]) == "trials 3, 5 and 8"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium (Debian: chromium)")
@pytest.mark.parametrize("name", SEARCHES)
def test_a_browser_draws_every_figure_and_complains_of_nothing(pages, name, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(pages[name])
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
               "--virtual-time-budget=20000", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said
    for figure in re.findall(r'<div id="(figure-[a-z]+)"', pages[name]):
        drawn = done.stdout.partition(f'id="{figure}"')[2].partition("</section>")[0]
        assert 'class="main-svg"' in drawn, figure
        assert "NaN" not in drawn, figure
