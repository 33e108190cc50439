"""Labels of images: from the folders that they lie in, or from a table in JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from gan.config import ConfigError

MAX_CLASSES = 100_000
NAME_COLUMNS = ("file_name", "filename", "file", "image", "path", "name", "key", "id")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label", "y")


@dataclass(frozen=True, slots=True)
class Labels:
    """A label for each image, and why some have none."""

    classes: tuple[str, ...] = ()
    numbers: np.ndarray | None = None  # int64 (n,), -1 where there is none; None where none at all
    wrong: dict[int, str] = field(default_factory=dict)  # image number -> what is wrong


NO_LABELS = Labels()


def labels_of_folders(names: Sequence[str], *, where: str) -> Labels:
    """Classes are the first folders of the images' names; images at the top have no labels.

    Raises ConfigError where some have a folder and others do not.
    """
    tops = [name.partition("/")[0] if "/" in name else None for name in names]
    stray = next((name for name, top in zip(names, tops, strict=True) if top is None), None)
    if stray is not None and any(top is not None for top in tops):
        raise ConfigError(
            [
                f"{where} has images both at its top and in sub-folders; sub-folders are classes, "
                f"so move {stray} and the like into one, or give --labels (a table, or 'none')"
            ]
        )
    classes = tuple(sorted({top for top in tops if top is not None}))
    if not classes:
        return NO_LABELS
    places = {name: number for number, name in enumerate(classes)}
    return Labels(classes, np.array([places[top] for top in tops if top is not None]))


def labels_of_table(names: Sequence[str], table: dict[str, Any], *, what: str) -> Labels:
    """Labels of images by their names' rows in a table (see `read_table_of_labels`).

    A table of bare file names is matched with the last part of the images' names.
    """
    bare = all("/" not in name for name in table)
    values = [
        table[name] if name in table else table.get(PurePosixPath(name).name if bare else name)
        for name in names
    ]
    return labels_of_values(values, what=what)


def labels_of_values(
    values: Iterable[Any], *, what: str, classes: Sequence[str] | None = None
) -> Labels:
    """Labels of raw values: class numbers, or class names where not all are numbers.

    With `classes`, numbers are held against these names. What is no label is recorded, not raised.
    """
    values = [_plain(value) for value in values]
    highest = -1
    numeric = classes is not None or not any(isinstance(value, str) for value in values)
    if not numeric:
        values = [str(v) if isinstance(v, int) else v for v in values]
        names = sorted({value for value in values if isinstance(value, str)})
    else:
        highest = max((v for v in values if isinstance(v, int)), default=-1)
        names = list(classes) if classes is not None else []
        if classes is None and 0 <= highest < MAX_CLASSES:
            names = [str(number) for number in range(highest + 1)]
    if len(names) > MAX_CLASSES or (classes is None and numeric and highest >= MAX_CLASSES):
        raise ConfigError(
            [
                f"the labels of {what} make more than {MAX_CLASSES} classes; name the column that "
                f"holds the classes with --label-column, or leave them out with --labels none"
            ]
        )
    places = {name: number for number, name in enumerate(names)}
    numbers, wrong = np.full(len(values), -1, np.int64), {}
    for number, value in enumerate(values):
        place = value if numeric else places.get(value)
        if value is None:
            wrong[number] = f"no label in {what}"
        elif not isinstance(place, int):
            wrong[number] = f"label {value!r} in {what} is neither a number nor a name"
        elif not 0 <= place < len(names):
            wrong[number] = f"label {value!r} in {what} is none of its {len(names)} classes"
        else:
            numbers[number] = place
    return Labels(tuple(names), numbers, wrong)


def _plain(value: Any) -> Any:
    """An int, a str, None, or a list for what is no label."""
    if isinstance(value, bool):
        return [value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else (None if value != value else [value])
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, str):
        return value.strip() or None
    return value if value is None else [value]


def read_table_of_labels(
    data: bytes, file: str, *, name_column: str | None = None, label_column: str | None = None
) -> dict[str, Any] | None:
    """Raw labels by image name, from a file's bytes; None where it says that there are no labels.

    JSON is StyleGAN's {"labels": [[name, label], ...] or null}, an object of names and labels, or
    a list of either pairs or objects; JSONL a line an object; CSV and Parquet have columns. Those
    that are not given are found by their usual names. Raises ConfigError.
    """
    suffix = PurePosixPath(file).suffix.lower()
    try:
        if suffix == ".json":
            rows = _rows_of_json(json.loads(data))
        elif suffix == ".jsonl":
            rows = [json.loads(line) for line in data.decode("utf-8-sig").splitlines() if line]
        elif suffix in (".csv", ".tsv"):
            text = StringIO(data.decode("utf-8-sig"), newline="")
            rows = list(csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ","))
        elif suffix == ".parquet":
            from pipeline.arrow_files import read_table

            columns = read_table(BytesIO(data))
            rows = [
                dict(zip(columns, values, strict=True))
                for values in zip(*columns.values(), strict=True)
            ]
        else:
            raise ConfigError(
                [f"labels come from a .json, .jsonl, .csv, .tsv or .parquet file, got {file}"]
            )
    except (ValueError, csv.Error, OSError) as error:  # pyarrow's errors are ValueErrors too
        raise ConfigError([f"{file} cannot be read as a table of labels: {error}"]) from None
    return None if rows is None else _by_name(rows, file, name_column, label_column)


def _rows_of_json(value: Any) -> list[Any] | None:
    if isinstance(value, dict) and "labels" in value:  # StyleGAN's dataset.json
        value = value["labels"]
        if value is None:
            return None
    if isinstance(value, dict):
        return [[name, label] for name, label in value.items()]
    if isinstance(value, list):
        return value
    raise ValueError("neither an object nor a list")


def _by_name(
    rows: list[Any], file: str, name_column: str | None, label_column: str | None
) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for row in rows:
        if isinstance(row, dict):
            name_column = name_column or _found(row, NAME_COLUMNS, file, "names")
            label_column = label_column or _found(row, LABEL_COLUMNS, file, "labels")
            name, label = row.get(name_column), row.get(label_column)
        elif isinstance(row, list) and len(row) == 2:
            name, label = row
        else:
            raise ConfigError([f"{file} has a row that is no image and label: {row!r:.80}"])
        name = str(name).replace("\\", "/").removeprefix("./")
        if name in table and table[name] != label:
            label = [table[name], label]  # labelled twice: neither is taken, and both are shown
        table[name] = label
    # In CSV everything is text: numbers are meant where all of them are.
    texts = [v for v in table.values() if isinstance(v, str) and v.strip()]
    if texts and all(text.strip().lstrip("-").isdigit() for text in texts):
        table = {n: int(v) if isinstance(v, str) and v.strip() else v for n, v in table.items()}
    return table


def _found(row: dict[str, Any], usual: tuple[str, ...], file: str, what: str) -> str:
    for name in usual:
        if name in row:
            return name
    option = "--name-column" if what == "names" else "--label-column"
    raise ConfigError(
        [
            f"{file} has the columns {', '.join(map(str, row))}; "
            f"say with {option} which holds {what}"
        ]
    )
