"""docs/settings.md, from the dataclasses that settings are: python -m tests.settings_page"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gan.schedules import Schedule, Steps
from pipeline.experiment import Experiment
from pipeline.search_config import SearchConfig
from pipeline.settings import expected, settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
SHORT = {expected(Schedule): "a schedule", expected(Steps): "steps"}
GIVEN = ("name", "data.shards")  # nothing is a default for them
HEAD = """# Settings

Every setting of an experiment file, made of the program's own comments (`python -m
tests.settings_page`). A setting has one name everywhere: TOML key, `key=value` on the command
line, MLflow parameter. "left out" is a default that the run chooses, as its meaning says, or none.
Schedules are tables such as `{ start = 2e-4, end = 5e-5 }` (a cosine over the run; `shape =
"linear"`, `over_kimg`), steps such as `{ at_kimg = [0, 50], values = [2, 1] }`; both count
images that D saw. Where a meaning is left out, the words above the table have it.
"""


def page() -> str:
    """The whole document."""
    parts = [HEAD]
    for prefix, section in sections():
        doc = "\n\n".join(inspect.cleandoc(cls.__doc__ or "") for cls in section.__mro__[:-1])
        title = f"[{prefix.rstrip('.')}]" if prefix else "Above all sections"
        rows = "\n".join(f"| {' | '.join(row)} |" for row in rows_of(section, prefix))
        table = f"| setting | is | default | meaning |\n|---|---|---|---|\n{rows}\n"
        parts.append(f"## {title}\n{doc.replace('<', '&lt;')}\n\n{table}")
    return "\n".join(parts)


def sections() -> Iterator[tuple[str, type]]:
    """The prefix of each section's settings, and its dataclass; the experiment's own first."""
    yield "", Experiment
    for field in dataclasses.fields(Experiment):
        if field.name == "search":
            yield "search.", SearchConfig
        elif dataclasses.is_dataclass(field.default_factory):
            assert isinstance(field.default_factory, type)
            yield f"{field.name}.", field.default_factory


def rows_of(section: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each setting of a section."""
    said, known = comments(section), settings()
    for field in dataclasses.fields(section):
        key = f"{prefix}{field.name}"
        if key not in known or (not prefix and field.name == "search"):
            continue
        kind = expected(known[key])
        for long, short in SHORT.items():
            kind = kind.replace(long, short)
        cells = f"`{key}`", kind, default(field, key), said.get(field.name, "")
        yield tuple(cell.replace("|", r"\|").replace("<", "&lt;") for cell in cells)  # pyright: ignore


def default(field: dataclasses.Field[Any], key: str) -> str:
    """A default as a TOML file has it."""
    if key in GIVEN:
        return "must be given"
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`[{', '.join(map(repr, value))}]`".replace("'", '"')
    return "`{}`" if value == {} else f"`{value!r}`"


def comments(section: type) -> dict[str, str]:
    """What the comments beside and right above each field say, those of base classes included."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__[:-1]):
        lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
        (tree,) = ast.parse("\n".join(lines)).body
        assert isinstance(tree, ast.ClassDef)
        for node in tree.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            above, number = [], node.lineno - 2
            while lines[number].lstrip().startswith("#"):
                above.insert(0, lines[number].lstrip("# "))
                number -= 1
            beside = lines[(node.end_lineno or 0) - 1][node.end_col_offset :].strip().lstrip("# ")
            words = "; ".join(part for part in (" ".join(above).rstrip("."), beside) if part)
            if words or node.target.id not in found:
                found[node.target.id] = words
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
