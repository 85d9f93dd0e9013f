"""Tables of image labels without boxes: CSV files, and JSON lines.

``datasets/README.md`` shows the formats. The reader of the CSV files is also that of score files.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager

from .errors import DatasetError, require_path
from .paths import is_file_name, with_paths
from .problems import Problems, counted, find_bad_class_names
from .registration import register_files, set_metadata

FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_id", "path")
CLASSES_FILE = "classes.txt"
_LISTS = ("labels", "ignored")
_SEPARATORS = ",;\t"
_BETWEEN_LABELS = re.compile("[;,|]")
PRESENT, ABSENT, UNKNOWN = 1, 0, -1
_STATES = dict.fromkeys(("-1", "-1.0", ""), UNKNOWN) | dict.fromkeys(("0", "0.0", "false"), ABSENT)
_STATES |= dict.fromkeys(("1", "1.0", "true"), PRESENT)  # as pandas writes them, in lower case
_NAMES_OR_MARKS = (
    'as cat;dog or ["cat", "dog"], or a column (in JSON lines a key) for each class with 1 or 0'
)
_PATHS_REMEDY = "Check the paths given to register_label_table."


class Row(NamedTuple):
    """An image of a table."""

    line: int  # of the file, from 1 on
    image: str  # as the first column names it
    cells: dict[str, Any]  # of the other columns


class Table(NamedTuple):
    """A table as it is written; `columns` are those after the first."""

    columns: list[str]
    rows: list[Row]
    separator: str = ","


class _Labels(NamedTuple):
    """What a row says of its image, by class name."""

    present: set[str]
    ignored: set[str]


def register_label_table(
    name: str, label_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a table of labels without boxes, CSV or JSON lines, as a multi-label data set.

    It trains and evaluates whole-image systems (`ImageLabeler`), and the whole-image predictor of
    SCNet. Nothing is read before ``DatasetCatalog.get(name)``, which also sets ``thing_classes``.
    Registering the same data set again is harmless.

    Raises:
        DatasetError: if ``name`` belongs to another data set, or is a path.
    """
    register_files(name, load_label_table, label_file=label_file, image_root=image_root)


def load_label_table(label_file: str, image_root: str, dataset_name: str) -> list[dict[str, Any]]:
    """Load a table as dataset dicts, in its order.

    Their ``image_labels`` and ``ignored_labels``, those that are unknown, are sorted contiguous
    ids; ``image_id`` is the file's name in the table. There are no ``annotations``, and no sizes.

    Args:
        label_file: path of the table.
        image_root: folder to which the file names in it are relative.
        dataset_name: name whose metadata gets the classes.

    Raises:
        DatasetError: for absent paths and for tables that are broken or inconsistent; with all
            that is wrong with one.
    """
    require_path(label_file, dataset_name, _PATHS_REMEDY)
    require_path(image_root, dataset_name, _PATHS_REMEDY, folder=True)
    problems = Problems(label_file)
    table = _read(label_file, problems)
    listed = "labels" in table.columns
    read = _listed_labels if listed else _marked_labels
    labels = [read(row, problems) for row in table.rows]
    classes = _listed_classes(label_file, labels, problems) if listed else table.columns
    find_bad_class_names(classes, problems)
    images = _images(table.rows, image_root, problems)
    problems.raise_any(images)
    set_metadata(dataset_name, classes, label_file, label_file=label_file, image_root=image_root)
    return _records(images, labels, classes)


def _records(
    images: list[dict], labels: list[_Labels], classes: Sequence[str]
) -> list[dict[str, Any]]:
    ids = {name: i for i, name in enumerate(classes)}
    return [
        {
            "file_name": image["file_name"],
            "image_id": image["id"],
            "image_labels": sorted(ids[name] for name in present),
            "ignored_labels": sorted(ids[name] for name in ignored),
        }
        for image, (present, ignored) in zip(images, labels, strict=True)
    ]


def _images(rows: list[Row], image_root: str, problems: Problems) -> list[dict]:
    """`id` and `file_name`, a path, of the images; those of faulty names are left out."""
    images = []
    for row in rows:
        if is_file_name(row.image):
            images.append({"id": row.image, "file_name": row.image})
        else:
            problems.add(
                f"line {row.line}: {row.image!r} names no file", "write the name of the image file"
            )
    return with_paths(images, os.fspath(image_root), problems)


# ---- Labels of a row ----------------------------------------------------------------------------


def label_state(cell: Any) -> int:
    """1 (present), 0 (absent) or -1 (unknown) of a cell.

    Raises:
        ValueError: for another value.
    """
    state = _STATES.get("" if cell is None else str(cell).strip().lower())
    if state is None:
        raise ValueError("is none of the labels 1, 0 and -1 (or True, False and an empty cell)")
    return state


def _marked_labels(row: Row, problems: Problems) -> _Labels:
    """Of a table with a column for each class."""
    labels = _Labels(set(), set())
    for name, cell in row.cells.items():
        try:
            state = label_state(cell)
        except ValueError as error:
            problems.add(
                f"line {row.line}: image {row.image!r}, class {name!r}: {cell!r} {error}",
                "correct the cells",
            )
            continue
        if state != ABSENT:
            (labels.present if state == PRESENT else labels.ignored).add(name)
    return labels


def _listed_labels(row: Row, problems: Problems) -> _Labels:
    """Of a table with a column of class names."""
    labels = _Labels(*(_names(row, key, problems) for key in _LISTS))
    if both := sorted(labels.present & labels.ignored):
        problems.add(
            f"line {row.line}: image {row.image!r}: {both[0]!r} is in labels and in ignored",
            "keep a label in one of them",
        )
    return labels


def _names(row: Row, key: str, problems: Problems) -> set[str]:
    """The class names of a cell, a text or a list."""
    cell = row.cells.get(key) or ""
    names = _split(cell) if isinstance(cell, str) else cell
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return {name.strip() for name in names} - {""}
    remedy = "write names"
    if isinstance(names, list) and all(type(n) in (int, float, bool) for n in names):
        remedy = f"write the names of the classes, {_NAMES_OR_MARKS}"
    problems.add(
        f"line {row.line}: image {row.image!r}: {key} is {cell!r}, no list of class names", remedy
    )
    return set()


def _split(cell: str) -> Any:
    """The names of a text, which may be a list as Python or JSON writes it: "['cat', 'dog']"."""
    if cell.strip().startswith("[") and cell.strip().endswith("]"):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(cell.strip())
    return _BETWEEN_LABELS.split(cell)


def _listed_classes(label_file: str, labels: list[_Labels], problems: Problems) -> list[str]:
    """The names in `classes.txt` beside the table, in its order, or those of the table, sorted."""
    used = set().union(*(names for row in labels for names in row))
    path = os.path.join(os.path.dirname(label_file), CLASSES_FILE)
    if not PathManager.isfile(path):
        if not used:
            problems.add("no image has a label", f"write labels, or {CLASSES_FILE} beside it")
        elif used <= {"0", "1"}:
            problems.add(
                f"its labels are only {' and '.join(sorted(used))}, which seem to say whether an "
                "image has a label",
                f"write the names of the classes, {_NAMES_OR_MARKS}; where these are names, write "
                f"{CLASSES_FILE} beside it",
            )
        return sorted(used)
    names = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    for name in sorted(used - set(names)):
        problems.add(f"label {name!r} is not in {path}", "add it there, or correct the label")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        problems.add(f"{path} has {repeated[0]!r} twice", "leave each name there once")
    return names


# ---- Files --------------------------------------------------------------------------------------


def _read(path: str, problems: Problems) -> Table:
    """A table of either format, by the end of the file's name."""
    is_json = path.lower().endswith((".json", ".jsonl", ".ndjson"))
    table = (_read_json_lines if is_json else read_csv)(path, problems)
    if not table.rows:
        problems.add("no image is listed", "there is nothing to load")
    if "labels" in table.columns and (more := sorted({*table.columns} - {*_LISTS})):
        problems.add(
            f"column {more[0]!r} stands beside 'labels'",
            "keep labels and ignored, which list names, or else a column for each class",
        )
    return table


def _read_text(path: str) -> str:
    try:
        with PathManager.open(path, "r", encoding="utf-8-sig", newline="") as file:  # Excel's BOM
            return file.read()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 ({error}); save it in UTF-8") from error


def read_csv(path: str | os.PathLike, problems: Problems) -> Table:
    """A CSV whose first column names images; comma, ; or tab separate its columns.

    An index column before it, as pandas writes it, is left out. Rows of another length than the
    header, and those of an image that was there before, are problems and left out.

    Raises:
        DatasetError: if the file is not UTF-8, or its header does not serve.
    """
    text = _read_text(os.fspath(path))
    first = text.partition("\n")[0]
    separator = next((c for c in first if c in _SEPARATORS), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        index = header[:1] == [""] and header[1:2] != []  # of rows, as pandas writes it
        header = header[index:]
        _check_header(header, problems.source)
        rows = _csv_rows(reader, header, index, problems)
    except csv.Error as error:
        raise DatasetError(f"{problems.source}, line {reader.line_num}: {error}") from error
    return Table(header[1:], rows, separator)


def _check_header(header: list[str], source: str) -> None:
    if len(header) < 2 or header[0].lower() not in FILE_COLUMNS:
        raise DatasetError(
            f"{source}, line 1: must be image_id,<class>,... or file,labels, got {header}; the "
            f"first column is one of {', '.join(FILE_COLUMNS)}"
        )
    if len(set(header)) < len(header):
        raise DatasetError(f"{source} has more than one column of a name: {header}")


def _csv_rows(reader: Any, header: list[str], index: bool, problems: Problems) -> list[Row]:
    rows: dict[str, Row] = {}
    for row in reader:
        if not any(map(str.strip, row)):
            continue
        image, *cells = row[index:] or [""]
        image = image.strip()
        if len(cells) != len(header) - 1:
            problems.add(
                f"line {reader.line_num}: image {image} has {counted(len(cells), 'cell')}, "
                f"not {len(header) - 1}, of {', '.join(header[1:4])}{', …' * (len(header) > 4)}",
                "write a cell for each column; quote what has the separator in it",
            )
        else:
            _add(rows, Row(reader.line_num, image, dict(zip(header[1:], cells))), problems)
    return list(rows.values())


def _add(rows: dict[str, Row], row: Row, problems: Problems) -> None:
    if row.image in rows:
        problems.add(
            f"line {row.line}: image {row.image} comes twice, first in line {rows[row.image].line}",
            "merge the rows of an image",
        )
    rows.setdefault(row.image, row)


def _read_json_lines(path: str, problems: Problems) -> Table:
    """A JSON object a line: an image's file, and its labels or a key for each class."""
    rows: dict[str, Row] = {}
    columns: list[str] = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        row = _json_row(number, line, problems)
        if row is None:
            continue
        columns = columns or list(row.cells)
        if "labels" in columns:
            columns += [key for key in row.cells if key not in columns]
        elif row.cells.keys() != set(columns):
            different = sorted(row.cells.keys() ^ set(columns))
            problems.add(
                f"line {number}: image {row.image} has not the keys of the first line: "
                f"{different[0]!r}",
                "write the same classes in every line; null is unknown",
            )
            continue
        _add(rows, row, problems)
    return Table(columns, list(rows.values()))


def _json_row(number: int, line: str, problems: Problems) -> Row | None:
    try:
        cells = json.loads(line)
    except ValueError as error:
        problems.add(f"line {number}: no JSON ({error})", "write one object a line")
        return None
    key = next((k for k in FILE_COLUMNS if k in cells), None) if isinstance(cells, dict) else None
    if key is None or not isinstance(cells[key], str) or len(cells) < 2:
        problems.add(
            f"line {number}: {line.strip()[:40]!r} is no object with the name of a file and labels",
            'write {"file": "a.jpg", "labels": ["cat", "dog"]}, one a line',
        )
        return None
    return Row(number, cells.pop(key).strip(), cells)
