"""docs/reliability.md: every row of the fault matrix names a test that there is."""

import ast
import re
from functools import cache
from pathlib import Path

from conftest import REPO

TESTS = REPO / "tests"
ROW = re.compile(r"\| (.+?) \| (.+?) \| `(?P<file>\w+\.py)::(?P<test>\w+)(\[.+\])?` \|")


def matrix() -> list[str]:
    """The rows of the section "Fault matrix", without the heads of its tables."""
    section = (REPO / "docs" / "reliability.md").read_text().split("\n## Fault matrix\n")[1]
    lines = section.split("\n## ")[0].splitlines()
    heads = ("| fault | what happens | test |", "|---|---|---|")
    return [line for line in lines if line.startswith("|") and line not in heads]


@cache
def find(name: str) -> Path:
    (path,) = TESTS.rglob(name)
    return path


@cache
def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}


def test_every_fault_has_a_test_that_exists():
    rows = matrix()
    assert len(rows) >= 28
    for row in rows:
        match = ROW.fullmatch(row)
        assert match, f"not | fault | what happens | `file.py::test_name` |: {row}"
        assert match["test"] in functions_in(find(match["file"])), row


def test_every_fault_that_is_tested_apart_has_a_row():
    named = {ROW.fullmatch(row)["test"] for row in matrix()}
    faults = {name for name in functions_in(find("test_faults.py")) if name.startswith("test_")}
    assert faults - named == set()
