"""docs/reliability.md: every row of the fault matrix names a test that runs and shows it."""

import inspect
import re
from typing import NamedTuple

import pytest
from conftest import REPO

TESTS = REPO / "tests"
ROW = re.compile(
    r"\| .+? \| (?P<outcome>.+?) \| `(?P<file>\w+\.py)::(?P<test>\w+)(\[(?P<id>.+)\])?` \|"
)


class Row(NamedTuple):
    """A row of the fault matrix."""

    outcome: str  # what happens
    file: str
    test: str
    id: str | None  # of the parameters


def matrix() -> list[Row]:
    """The rows of the section "Fault matrix", without the heads of its tables."""
    section = (REPO / "docs" / "reliability.md").read_text().split("\n## Fault matrix\n")[1]
    lines = section.split("\n## ")[0].splitlines()
    heads = ("| fault | what happens | test |", "|---|---|---|")
    rows = [line for line in lines if line.startswith("|") and line not in heads]
    matches = [ROW.fullmatch(row) for row in rows]
    for row, match in zip(rows, matches):
        assert match, f"not | fault | what happens | `file.py::test_name` |: {row}"
    return [Row(*match.group("outcome", "file", "test", "id")) for match in matches]


class Collected:
    """A plugin that keeps the tests that pytest finds."""

    def pytest_collection_finish(self, session):
        self.items = session.items


@pytest.fixture(scope="module")
def tests() -> dict[tuple[str, str], list[pytest.Function]]:
    """(File, test) -> what pytest collects of it, for all files that the matrix names."""
    files = {file: [*TESTS.rglob(file)] for file in {row.file for row in matrix()}}
    assert {file: len(paths) for file, paths in files.items()} == dict.fromkeys(files, 1)
    plugin = Collected()
    quiet = ("-p", "no:cacheprovider", "-p", "no:faulthandler")
    paths = [str(path) for (path,) in files.values()]
    assert pytest.main(["--collect-only", *quiet, *paths], plugins=[plugin]) == 0
    found = {}
    for item in plugin.items:
        found.setdefault((item.path.name, item.originalname), []).append(item)
    return found


def test_every_fault_has_a_test_that_runs(tests):
    for row in matrix():
        items = tests[row.file, row.test]
        names = [item.name for item in items]
        assert row.id is None or f"{row.test}[{row.id}]" in names, row
        for item in items:
            marks = {mark.name for mark in item.iter_markers()}
            assert marks.isdisjoint({"skip", "xfail"}), row


def test_a_test_names_the_error_that_its_row_names(tests):
    for row in matrix():
        source = inspect.getsource(tests[row.file, row.test][0].function)
        for error in re.findall(r"`(\w+Error)`", row.outcome):
            assert error in source, f"{row.test} shows no {error}"


def test_every_fault_that_is_tested_apart_has_a_row(tests):
    named = {(row.file, row.test) for row in matrix()}
    assert {key for key in tests if key[0] == "test_faults.py"} <= named
