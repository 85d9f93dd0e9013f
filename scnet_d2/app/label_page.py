"""HTML of a labelled photograph: boxes or class maps on it; score bars beside choose a label.

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
from ..inference.visualizer import heat, label_maps
from ..report.templates import TEMPLATES, DrawnBox, png_url

PHOTO_SIDE = 1280  # long side of the photograph that the page gets, in pixels
HEAT_SIDE = 96  # the same of a class map
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
    boxes: int  # most proposals that took part, 0 for a model without boxes
    milliseconds: float  # the prediction took


class Label(NamedTuple):
    """A label of a photograph.

    `boxes` begins with the one that its score comes from; `heat` is the picture of its class map as
    a data URL, "" where the model gives none.
    """

    class_id: int
    number: int  # 1: the highest score
    name: str
    score: float
    threshold: float
    predicted: bool
    boxes: list[DrawnBox]
    heat: str = ""


def list_labels(
    output: dict, class_names: Sequence[str], thresholds: Sequence[float]
) -> list[Label]:
    """All labels of a photograph from the highest score down.

    Args:
        output: the model's for one image, on the CPU.
        class_names: C names.
        thresholds: C scores from which on a label is predicted; detections of the label with such
            a score are listed after the box that its own score comes from.
    """
    scores = image_scores(output, len(class_names))
    decisions = predicted(scores, thresholds)
    boxes, context = label_boxes(output, len(class_names))
    ratios = output.get("label_context_ratios", np.full(len(class_names), np.nan))
    maps = label_maps(output, class_names)
    return [
        Label(
            c, number, class_names[c], scores[c], thresholds[c], decisions[c],
            _boxes(number, DrawnBox(number, boxes[c], context[c], float(ratios[c])),
                   output.get("instances"), c, thresholds[c]),
            _heat_url(maps[class_names[c]]) if maps else "",
        )
        for number, c in enumerate(np.argsort(-scores, kind="stable").tolist(), start=1)
    ]  # fmt: skip


def page_html(part: str, *values) -> str:
    """A part of the page: a macro of `label_page.html.jinja`, given `values`."""
    return str(getattr(TEMPLATES.get_template("app/label_page.html.jinja").module, part)(*values))


def _heat_url(class_map: np.ndarray) -> str:
    """A class map (h, w) as the data URL of a small picture, which the page enlarges."""
    scale = HEAT_SIDE / max(class_map.shape)
    size = tuple(max(round(side * scale), 1) for side in class_map.shape)
    return png_url(heat(class_map, size))


def _boxes(
    number: int, best: DrawnBox, instances: Instances | None, class_id: int, threshold: float
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
