"""Files are written whole or not at all, by every function that writes one."""

import errno
import json
import os
from types import SimpleNamespace

from scnet_d2.checkpoint import CheckpointError, replace_file
from scnet_d2.evaluation import ScoreTable, save_thresholds, write_scores
from scnet_d2.outputs import replacing, whole_file, write_image, write_json
from scnet_d2.report.page import write_html_report
from scnet_d2.tagging.output import TagOutput

import compare
import evidence
import numpy as np
import pytest
from matplotlib.figure import Figure

TABLE = ScoreTable(np.ones((1, 1)), np.ones((1, 1), bool), np.zeros((1, 1), bool), ["cat"], [1])


def write_tags(path):
    settings = {"version": "1", "weights": "a", "thresholds": {}, "top_k": None}
    with TagOutput(path, "csv", settings) as output:
        list(output.finished())
        output.write_result(["cat"])


def write_report(path):
    folder = path.parent / "inference" / "d"
    if not folder.exists():
        folder.mkdir(parents=True)
        write_scores(folder / "multilabel_scores.npz", TABLE)
    write_html_report(path.parent, path)


def write_cell(path):
    plan = SimpleNamespace(results=path.parent)
    compare.write_result(plan, path.stem, {"mAP": 1})


WRITERS = {
    "a.npz": lambda path: write_scores(path, TABLE),
    "b.json": lambda path: save_thresholds(path, [0.5], ["cat"], "val.npz"),
    "c.json": lambda path: write_json(path, {"a": 1}),
    "d.png": lambda path: write_image(path, np.zeros((4, 4, 3), np.uint8)),
    "e.pth": lambda path: replace_file(str(path), lambda file: file.write(b"new")),
    "f.csv": write_tags,
    "g.html": write_report,
    "h.json": write_cell,
    "i.png": lambda path: evidence.save_figure(Figure(), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_file_that_was_there_and_nothing_beside_it(
    name, tmp_path, monkeypatch
):
    path, write = tmp_path / name, WRITERS[name]
    write(path)
    before = path.read_bytes()
    left = sorted(tmp_path.iterdir())

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises((OSError, CheckpointError), match=f"{name}.*|.*{name}") as error:
            write(path)
    assert "No space left on device" in str(error.value)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == left


def test_a_writer_that_stops_leaves_nothing_and_its_own_error(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    with (
        pytest.raises(FileNotFoundError, match=r"other\.txt"),
        replacing(tmp_path / "a.txt", "w") as file,
    ):
        file.write("half")
        (tmp_path / "other.txt").read_text()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_another_name_keeps_its_ending_where_a_writer_goes_by_it(tmp_path):
    with whole_file(tmp_path / "model.onnx", keep_suffix=True) as partial:
        assert (partial.parent, partial.suffix) == (tmp_path, ".onnx")
        partial.write_text("model")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model.onnx", "model")]


def test_an_image_of_no_known_format_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.xyz: name it \.png or \.jpg"):
        write_image(tmp_path / "a.xyz", np.zeros((4, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_json_takes_any_name(tmp_path):
    write_json(tmp_path / "a.json", {"b\udcff.jpg": "λ"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b\udcff.jpg": "λ"}
