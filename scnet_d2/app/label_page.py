"""HTML of a labelled photograph: its boxes on the left, score bars on the right choose a label.

The file's template, style and script go with it; `scnet app` serves the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances

from ..evaluation.label_boxes import label_boxes
from ..evaluation.metrics import predicted
from ..evaluation.multilabel_evaluator import image_scores
from ..report.templates import TEMPLATES, DrawnBox

PHOTO_SIDE = 1280  # long side of the photograph that the page gets, in pixels
SAME_BOX = 0.5  # px; boxes that differ by less are drawn once

STYLE = resources.files(__package__) / "label_page.css"
SCRIPT = resources.files(__package__) / "label_page.js"


class LabelledPhoto(NamedTuple):
    """A photograph and what the model says of it."""

    path: str
    name: str
    size: tuple[int, int]  # (height, width) in pixels
    url: str  # the photograph, reduced, as a data URL
    output: dict  # the model's, on the CPU
    boxes: int  # most proposals that took part
    milliseconds: float  # the prediction took


class Label(NamedTuple):
    """A label of a photograph; `boxes` begins with the one that its score comes from."""

    class_id: int
    number: int  # 1: the highest score
    name: str
    score: float
    threshold: float
    predicted: bool
    boxes: list[DrawnBox]


def list_labels(
    output: dict, class_names: Sequence[str], thresholds: Sequence[float]
) -> list[Label]:
    """All labels of a photograph from the highest score down.

    Args:
        output: SCNet's output for one image, on the CPU.
        class_names: C names.
        thresholds: C scores from which on a label is predicted; detections of the label with such
            a score are listed after the box that its own score comes from.
    """
    scores = image_scores(output, len(class_names))
    decisions = predicted(scores, thresholds)
    boxes, context = label_boxes(output, len(class_names))
    ratios = output.get("label_context_ratios", np.full(len(class_names), np.nan))
    return [
        Label(
            c, number, class_names[c], scores[c], thresholds[c], decisions[c],
            _boxes(number, DrawnBox(number, boxes[c], context[c], float(ratios[c])),
                   output["instances"], c, thresholds[c]),
        )
        for number, c in enumerate(np.argsort(-scores, kind="stable").tolist(), start=1)
    ]  # fmt: skip


def page_html(part: str, *values) -> str:
    """A part of the page: a macro of `label_page.html.jinja`, given `values`."""
    return str(getattr(TEMPLATES.get_template("app/label_page.html.jinja").module, part)(*values))


def _boxes(
    number: int, best: DrawnBox, instances: Instances, class_id: int, threshold: float
) -> list[DrawnBox]:
    """The box that a label comes from, then those of its detections that reach the threshold."""
    if np.isnan(best.tight).any():
        return []
    tight, context = instances.pred_boxes.tensor.numpy(), instances.context_boxes.tensor.numpy()
    own = instances.pred_classes.numpy() == class_id
    # One of the detections is of the box that the label comes from, unless NMS left it out.
    other = own & predicted(instances.scores.numpy(), threshold)
    other &= np.abs(tight - best.tight).max(axis=1, initial=0) > SAME_BOX
    return [best, *(DrawnBox(number, tight[i], context[i]) for i in np.flatnonzero(other))]
