"""Score files: what is written comes back, and what is wrong with a file is said with its name."""

from scnet_d2.evaluation import ScoreFileError, ScoreTable, read_scores, write_scores

import numpy as np
import pytest
from conftest import scnet

SCORES = np.array([[0.25, 0.5, 1], [0, 0.75, 0.125]], dtype=np.float32)
LABELS = np.array([[1, 0, 1], [0, 1, 0]], dtype=bool)
IGNORED = np.array([[0, 1, 0], [0, 0, 0]], dtype=bool)


def make_table(image_ids=(7, 8), scores=SCORES):
    return ScoreTable(
        scores, LABELS, IGNORED, ["cat", "dog", "cow"], list(image_ids), ["a.jpg", "猫.jpg"],
        np.array([0.1, 0.2, 0.3]), np.array([False, True]),
        {"evidence_classes": np.array([2], np.int32)},
    )  # fmt: skip


def assert_same(table, expected):
    for key, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(table, key), value)
        elif key != "evidence":
            assert getattr(table, key) == value
    assert table.evidence.keys() == expected.evidence.keys()


@pytest.mark.parametrize("ids", [[7, 8], ["a", "000b"]])
def test_what_is_written_comes_back_without_pickle(tmp_path, ids, caplog):
    write_scores(tmp_path / "a.npz", make_table(ids))
    assert_same(read_scores(tmp_path / "a.npz"), make_table(ids))
    assert "a.npz: 1 image could not be read" in caplog.text


def test_ids_that_are_no_64_bit_integers_become_text(tmp_path):
    write_scores(tmp_path / "a.npz", make_table([1, 2**70]))
    assert read_scores(tmp_path / "a.npz").image_ids == ["1", str(2**70)]


def test_half_precision_scores_come_back_as_float32(tmp_path):
    write_scores(tmp_path / "a.npz", make_table(), np.float16)
    assert np.load(tmp_path / "a.npz")["scores"].dtype == np.float16
    scores = read_scores(tmp_path / "a.npz").scores
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, SCORES)  # all are sums of a few powers of two


def test_some_classes_are_taken_out_in_the_order_asked_for():
    part = make_table().of_classes(["cow", "cat"])
    assert part.class_names == ["cow", "cat"]
    np.testing.assert_array_equal(part.scores, [[1, 0.25], [0.125, 0]])
    np.testing.assert_array_equal(part.labels, [[1, 1], [0, 0]])
    np.testing.assert_array_equal(part.thresholds, [0.3, 0.1])
    with pytest.raises(ValueError, match="'eel'"):
        make_table().of_classes(["eel"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:1]}, r"labels has shape \(1, 3\), scores have \(2, 3\)"),
        ({"scores": SCORES * 2}, r"image 7, class c: the score is 2.0, .* \(and 1 more\)"),
        ({"scores": SCORES * np.nan}, "image 7, class a: the score is nan, not a number"),
        ({"class_names": ["cat"]}, "2 image ids and 1 class names"),
        ({"image_ids": [7, 7]}, "image 7 comes twice"),
        ({"image_ids": [7]}, "has 1 image id and 3 class names"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path, change, message):
    arrays = {"scores": SCORES, "labels": LABELS, "class_names": list("abc"), "image_ids": [7, 8]}
    np.savez(tmp_path / "a.npz", **(arrays | change))
    with pytest.raises(ScoreFileError, match=rf"a\.npz: .*{message}"):
        read_scores(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("scores", ["{file}"]),
        ("compare", ["{file}", "{file}"]),
        ("tune", ["{file}", "--output", "{folder}/t.json"]),
        ("report", ["{folder}"]),
    ],
)
def test_every_program_names_a_truncated_file(command, arguments, tmp_path, capsys):
    file = tmp_path / "inference" / "d" / "multilabel_scores.npz"
    file.parent.mkdir(parents=True)
    write_scores(file, make_table())
    file.write_bytes(file.read_bytes()[:-30])
    assert scnet(command, *(a.format(file=file, folder=tmp_path) for a in arguments)) == 2
    assert f"{file}: " in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
