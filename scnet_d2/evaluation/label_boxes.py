"""The boxes that the labels of an image come from."""

from __future__ import annotations

from typing import Any

import numpy as np

from .metrics import predicted

LABELS_WITH_BOXES = 8  # of an image in a score file, or all predicted ones where they are more


def label_boxes(output: dict[str, Any], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """For each label the box that it comes from, and that box's context box.

    SCNet says it itself: the box in which the label scores highest among all boxes that were
    scored, also those that no detection is left of. Of another detector's output it is the
    detection with the highest score among those of the label, as for its image score.

    Args:
        output: a model's output for one image: ``label_boxes`` and ``label_context_boxes``, Tensor
            (C, 4) each, or ``instances``, or neither.
        num_classes: C.

    Returns:
        ``(boxes, context_boxes)``, each (C, 4) float32 XYXY in pixels of the original image; rows
        are nan where a label has no box, or the model no context boxes.
    """
    if "label_boxes" in output:
        return tuple(_numpy(output[key]) for key in ("label_boxes", "label_context_boxes"))
    boxes, context_boxes = np.full((2, num_classes, 4), np.nan, dtype=np.float32)
    if "instances" in output:
        instances = output["instances"]
        # the highest score comes last, and of equal ones the first
        order = np.argsort(-_numpy(instances.scores), kind="stable")[::-1]
        classes = instances.pred_classes.cpu().numpy()[order]
        boxes[classes] = _numpy(instances.pred_boxes.tensor)[order]
        if instances.has("context_boxes"):
            context_boxes[classes] = _numpy(instances.context_boxes.tensor)[order]
    return boxes, context_boxes


def evidence_rows(
    output: dict[str, Any], scores: np.ndarray, thresholds: float | np.ndarray
) -> np.ndarray:
    """The boxes of the highest-scoring labels of an image, and of all that are predicted.

    Args:
        output: see :func:`label_boxes`.
        scores: (C,) image scores.
        thresholds: from which on a label is predicted; one number or (C,).

    Returns:
        (L, 10) float32, the highest score first: class id, box and context box as
        :func:`label_boxes` gives them, in tenths of a pixel, and the ratio of the context box, nan
        where the box does not choose it. Labels without a box have no row.
    """
    boxes, context_boxes = label_boxes(output, len(scores))
    order = np.argsort(-scores, kind="stable")
    kept = predicted(scores, thresholds)
    kept[order[:LABELS_WITH_BOXES]] = True
    kept &= ~np.isnan(boxes).any(axis=1)
    order = order[kept[order]]
    ratios = np.full(len(scores), np.nan)
    if "label_context_ratios" in output:
        ratios = _numpy(output["label_context_ratios"])
    rows = np.column_stack([order, boxes[order], context_boxes[order], ratios[order]])
    return rows.astype(np.float32).round(1)  # which compresses well


def evidence_arrays(evidence: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What is saved: one row for each label of an image that has a box.

    Args:
        evidence: N arrays of :func:`evidence_rows`.

    Returns:
        ``evidence_images`` (E,) int32 rows of the scores, ``evidence_classes`` (E,) int32,
        ``evidence_boxes`` and ``evidence_context_boxes`` (E, 4) float32; where boxes choose them,
        ``evidence_context_ratios`` (E,) float32.
    """
    rows = np.concatenate([*evidence, np.zeros((0, 10), dtype=np.float32)])
    ratios = {} if np.isnan(rows[:, 9]).all() else {"evidence_context_ratios": rows[:, 9]}
    return {
        "evidence_images": np.repeat(
            np.arange(len(evidence), dtype=np.int32), [len(rows_) for rows_ in evidence]
        ),
        "evidence_classes": rows[:, 0].astype(np.int32),
        "evidence_boxes": rows[:, 1:5],
        "evidence_context_boxes": rows[:, 5:9],
    } | ratios


def _numpy(values) -> np.ndarray:
    """A tensor on any device as a float32 array of its shape."""
    return values.detach().float().cpu().numpy()
