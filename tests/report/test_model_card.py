"""The model card: numbers worked by hand, and what is not known of a run."""

import re

from scnet_d2.evaluation.score_files import ScoreTable
from scnet_d2.report.model_card import model_card

import numpy as np
import pytest
from conftest import load_config, small_config


def made_table(scores, labels, ignored=None, names=("cat", "a|<b>")) -> ScoreTable:
    labels = np.array(labels, dtype=bool)
    ignored = np.zeros_like(labels) if ignored is None else np.array(ignored, dtype=bool)
    return ScoreTable(np.array(scores, dtype=np.float32), labels, ignored, list(names))


def card(evaluated, *opts, names=("cat", "a|<b>"), train_images=None, licence=""):
    cfg = small_config(*opts)
    return model_card("tiny", cfg, names, evaluated, train_images, licence)


def rows(text: str) -> list[list[str]]:
    """Cells of the lines of the table below its head."""
    lines = re.findall(r"^\|(.+)\|$", text, flags=re.MULTILINE)[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def test_ap_and_counts_are_those_of_all_test_images_together():
    first = made_table([[0.9, 0.1], [0.8, 0.7]], [[1, 0], [0, 1]])
    second = made_table([[0.1, 0.3], [0.0, 0.9]], [[1, 0], [0, 1]], [[0, 0], [0, 1]])
    text = card({"one": first, "two": second}, train_images=[1234, 19])
    # cat: positives at ranks 1 and 3 of 4, (1 + 2/3) / 2; the other: its one positive is first
    assert rows(text) == [["cat", "83.3", "2", "1,234"], [r"a\|&lt;b&gt;", "100.0", "1", "19"]]
    assert "On the 4 images of one and two, in percent: mAP 91.7, CF1" in text
    assert "- a|&lt;b&gt;: fewer than 20 training images each.\n" in text


def test_the_mean_over_labels_with_enough_images_stands_beside_that_over_all():
    labels = [[1, 0]] * 20 + [[0, 1], [0, 0]]
    scores = [[0.9, 0.0]] * 20 + [[0.0, 0.1], [0.0, 0.2]]
    # the second label: its one positive is second of two with a score, AP 1/2
    said = "mAP 75.0, CF1 50.0, OF1 97.6; mAP of the 1 labels with at least 20 images 100.0."
    assert said in card({"one": made_table(scores, labels)})


def test_what_is_not_known_is_left_out():
    assert rows(card({})) == [["cat"], [r"a\|&lt;b&gt;"]]
    assert "in percent" not in card({})
    assert "fewer than" not in card({})
    nothing = made_table([[0.5, 0.5]], [[1, 0]])
    assert rows(card({"one": nothing}))[1] == [r"a\|&lt;b&gt;", "–", "0"]


def test_scores_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="scores of one: their classes are not the model's"):
        card({"one": made_table([[0.5, 0.5]], [[1, 0]])}, names=("dog", "cow"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("voc_2012_train_multilabel", "voc_2007_trainval_multilabel"), ["PASCAL VOC: "]),
        (("coco_2017_train_multilabel", "mine"), ["COCO: ", "The licence of mine is not stated."]),
        ((), []),
    ],
)
def test_licences_of_published_data_are_named_once(names, said):
    text = card({}, "DATASETS.TRAIN", names)
    data = text.partition("## Data")[2].partition("##")[0].strip().split("\n")[1:]
    assert [line[: len(s)] for line, s in zip(data, said, strict=True)] == said
    given = card({}, "DATASETS.TRAIN", names, licence="CC0, by me.")
    assert "\nCC0, by me.\n" in given
    assert "PASCAL" not in given


def test_backbone_and_initial_weights_are_named_without_a_path():
    text = card({}, "MODEL.WEIGHTS", "/home/somebody/R-18.pkl")
    assert "with build_resnet_fpn_backbone of depth 18. " in text
    assert "Training began with R-18.pkl and " in text
    timm = load_config("VOC-MultiLabel/scnet_EfficientNet_Lite0_FPN_256px.yaml")
    timm.MODEL.WEIGHTS = "timm://tf_efficientnet_lite0"
    text = model_card("tiny", timm, ["cat"], {})
    assert "with the backbone tf_efficientnet_lite0. " in text
    assert "Training began with timm://tf_efficientnet_lite0 and " in text
