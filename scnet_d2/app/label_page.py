"""HTML of a labelled photograph: its boxes on the left, score bars on the right choose a label.

`label_page.css` and `label_page.js` go with it; demo/app.py serves the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances

from ..evaluation.label_boxes import best_box
from ..evaluation.metrics import predicted
from ..inference.predictor import describe_labels
from ..report.charts import DrawnBox, badges, box_lines, color

PHOTO_SIDE = 1280  # long side of the photograph that the page gets, in pixels
DRAWING_SIDE = 600  # long side of the drawing, in its own units
LABELS_SHOWN = 8  # labels that are listed at once, or all predicted ones where they are more

STYLE = resources.files(__package__) / "label_page.css"
SCRIPT = resources.files(__package__) / "label_page.js"


class LabelledPhoto(NamedTuple):
    """A photograph and what the model says of it."""

    path: str
    name: str
    size: tuple[int, int]  # (height, width) in pixels
    url: str  # the photograph, reduced, as a data URL
    output: dict  # the model's, on the CPU
    patches: int  # most proposals that took part
    milliseconds: float  # the prediction took


class Label(NamedTuple):
    """A label of a photograph; `boxes` begins with the one that its score comes from."""

    class_id: int
    number: int  # 1: the highest score
    name: str
    score: float
    threshold: float
    boxes: list[DrawnBox]

    @property
    def predicted(self) -> bool:
        """Whether the score reaches the threshold."""
        return bool(predicted(self.score, self.threshold))


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
    labels = []
    for number, entry in enumerate(describe_labels(output, range(len(class_names))), start=1):
        class_id = entry["label"]
        threshold = float(thresholds[class_id])
        boxes = _boxes(number, output["instances"], class_id, threshold)
        name, score = class_names[class_id], entry["score"]
        labels.append(Label(class_id, number, name, score, threshold, boxes))
    return labels


def result_html(photo: LabelledPhoto, labels: Sequence[Label]) -> str:
    """The photograph with its boxes, and its labels as buttons with score bars."""
    ratio = photo.size[1] / photo.size[0]
    return (
        f'<div class="result"><figure style="--ratio:{ratio:.3f}">{_picture(photo, labels)}'
        f"<figcaption>{_facts(photo)}"
        '<p class="legend"><span class="key"></span>box <span class="key dashed"></span>context '
        f"box</p></figcaption></figure>{_label_list(labels)}</div>"
    )


def start_html(message: str = "") -> str:
    """Where a photograph is dropped, with a message why the last one is not shown."""
    alert = f'<p class="message" role="alert">{escape(message)}</p>' if message else ""
    return (
        f'<div class="result">{alert}<button type="button" class="drop" data-choose>'
        '<svg viewBox="0 0 48 48" aria-hidden="true"><path d="M6 10h36v28H6zM6 32l10-10 8 8 7-7 11 '
        '11M33 18.5a2.5 2.5 0 1 1-5 0 2.5 2.5 0 0 1 5 0"></path></svg>'
        "<strong>Choose a photograph</strong><span>or drop or paste it here</span></button></div>"
    )


def examples_html(examples: Sequence[tuple[str, str]]) -> str:
    """Buttons with small photographs.

    Args:
        examples: name and data URL of each.
    """
    buttons = "".join(
        f'<button type="button" data-example="{i}" title="{escape(name)}">'
        f'<img src="{url}" alt="{escape(name)}"></button>'
        for i, (name, url) in enumerate(examples)
    )
    return f'<div class="examples">{buttons}</div>'


def _boxes(number: int, instances: Instances, class_id: int, threshold: float) -> list[DrawnBox]:
    best = best_box(instances, class_id)
    if best is None:
        return []
    tight = instances.pred_boxes.tensor
    # Other classes' detections may have the same box: it is drawn once.
    other = (tight != tight[best]).any(dim=1) & (instances.pred_classes == class_id)
    other &= torch.from_numpy(predicted(instances.scores.numpy(), threshold))
    rows = [best, *other.nonzero().flatten().tolist()]
    context = instances.context_boxes.tensor
    return [DrawnBox(number, tight[row].numpy(), context[row].numpy()) for row in rows]


def _picture(photo: LabelledPhoto, labels: Sequence[Label]) -> str:
    scale = DRAWING_SIDE / max(photo.size)
    size = height, width = photo.size[0] * scale, photo.size[1] * scale
    groups = "".join(_group(label, scale, size) for label in reversed(labels) if label.boxes)
    first = [label.boxes[0] for label in labels if label.predicted and label.boxes]
    return (
        f'<svg class="photo" viewBox="0 0 {width:.1f} {height:.1f}" role="img" '
        f'aria-label="{escape(photo.name)}"><image href="{photo.url}" width="{width:.1f}" '
        f'height="{height:.1f}" preserveAspectRatio="none"></image>{groups}'
        f'<g class="numbers">{badges(first, scale, size)}</g></svg>'
    )


def _group(label: Label, scale: float, size: tuple[float, float]) -> str:
    """The boxes of a label; once it is chosen, what no context box covers is dimmed."""
    whole = f'width="{size[1]:.1f}" height="{size[0]:.1f}"'
    holes = "".join(_rectangle(box.context * scale) for box in label.boxes)
    others = "".join(box_lines(box, scale) for box in label.boxes[1:])
    return (
        f'<g class="boxes{" predicted" if label.predicted else ""}" data-label="{label.class_id}">'
        f'<mask id="around-{label.class_id}"><rect {whole} fill="#fff"></rect>{holes}</mask>'
        f'<rect class="dim" {whole} mask="url(#around-{label.class_id})"></rect>'
        f'<g class="others">{others}</g>{box_lines(label.boxes[0], scale)}'
        f'<g class="number">{badges(label.boxes[:1], scale, size)}</g></g>'
    )


def _rectangle(box: np.ndarray) -> str:
    x0, y0, x1, y1 = box.tolist()
    return f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"></rect>'


def _facts(photo: LabelledPhoto) -> str:
    height, width = photo.size
    return (
        f'<p class="facts" role="status"><strong>{photo.milliseconds:.0f} ms</strong> · '
        f"{photo.patches} patches · {width} × {height} px · {escape(photo.name)}</p>"
    )


def _label_list(labels: Sequence[Label]) -> str:
    predicted = sum(label.predicted for label in labels)
    shown = max(predicted, LABELS_SHOWN)
    names = {0: "No label reaches the threshold", 1: "1 label"}
    found = names.get(predicted, f"{predicted} labels")
    hint = "Click one to see where it comes from."
    if not any(label.boxes for label in labels):
        hint = "No box scores high enough to be kept."
    body = f"<ol>{''.join(map(_row, labels[:shown]))}</ol>"
    if rest := labels[shown:]:
        body += (
            f"<details><summary>{len(rest)} more</summary>"
            f"<ol>{''.join(map(_row, rest))}</ol></details>"
        )
    return f'<section class="labels"><h2>{found}</h2><p class="hint">{hint}</p>{body}</section>'


def _row(label: Label) -> str:
    return (
        f'<li><button type="button" data-label="{label.class_id}" aria-pressed="false" '
        f'class="{"predicted" if label.predicted else ""}" style="--color:{color(label.number)};'
        f'--score:{label.score:.2%};--threshold:{label.threshold:.2%}"'
        f"{'' if label.boxes else ' disabled'}>"
        f'<span class="rank">{label.number}</span><span class="name">{escape(label.name)}</span>'
        f'<span class="score">{label.score:.2f}</span>'
        '<span class="track" aria-hidden="true"></span></button></li>'
    )
