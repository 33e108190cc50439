"""forger report: the page of a search in a file."""

from __future__ import annotations

from click.testing import CliRunner

from gan.config import ConfigError
from jobs.report import command


def test_a_search_that_is_not_there_is_a_mistake_and_leaves_no_file(tmp_path):
    page = tmp_path / "page.html"
    arguments = ["nothing", "--storage", str(tmp_path / "runs"), "-o", str(page)]
    done = CliRunner().invoke(command, arguments)
    assert isinstance(done.exception, ConfigError)
    assert "there is no search" in str(done.exception)
    assert not page.exists()
