"""The boxes that the labels of an image come from."""

from __future__ import annotations

import numpy as np
from detectron2.structures import Instances

EVIDENCE_LABELS = 8  # labels of an image whose boxes are kept, enough for a page of pictures

_FIELDS = ("pred_boxes", "scores", "pred_classes", "label_scores", "context_boxes")


def best_box(instances: Instances, class_id: int) -> int | None:
    """Index of the box in which a label scores highest; None without one.

    Args:
        instances: of SCNet, whose every box has ``label_scores`` (C,), or of any detector, whose
            box speaks for its ``pred_classes`` alone.
        class_id: the label.
    """
    if len(instances) == 0:
        return None
    if instances.has("label_scores"):
        return int(instances.label_scores[:, class_id].argmax())
    own = (instances.pred_classes == class_id).nonzero().flatten()
    return int(own[instances.scores[own].argmax()]) if len(own) else None


def label_evidence(instances: Instances, scores: np.ndarray) -> np.ndarray:
    """The boxes of the highest-scoring labels of an image.

    Args:
        instances: see :func:`best_box`.
        scores: (C,) image scores.

    Returns:
        (L, 9) float32, L at most ``EVIDENCE_LABELS``: class id, tight box and context box in XYXY
        pixels of the original image; nan where the model has no context boxes.
    """
    fields = {key: instances.get(key) for key in _FIELDS if instances.has(key)}
    instances = Instances(instances.image_size, **fields).to("cpu")  # masks stay where they are
    order = np.argsort(-scores, kind="stable")[:EVIDENCE_LABELS].tolist()
    best = [(class_id, best_box(instances, class_id)) for class_id in order]
    best = [(class_id, box) for class_id, box in best if box is not None]
    rows = np.full((len(best), 9), np.nan, dtype=np.float32)
    for row, (class_id, box) in zip(rows, best):
        row[0] = class_id
        row[1:5] = instances.pred_boxes.tensor[box].detach().numpy()
        if instances.has("context_boxes"):
            row[5:9] = instances.context_boxes.tensor[box].detach().numpy()
    return rows.round(1)  # a tenth of a pixel, which compresses well


def evidence_arrays(evidence: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What is saved: one row for each label of an image that has a box.

    Args:
        evidence: N arrays of :func:`label_evidence`.

    Returns:
        ``evidence_images`` (E,) int32 rows of the scores, ``evidence_classes`` (E,) int32,
        ``evidence_boxes`` and ``evidence_context_boxes`` (E, 4) float32.
    """
    rows = np.concatenate([*evidence, np.zeros((0, 9), dtype=np.float32)])
    return {
        "evidence_images": np.repeat(
            np.arange(len(evidence), dtype=np.int32), [len(rows_) for rows_ in evidence]
        ),
        "evidence_classes": rows[:, 0].astype(np.int32),
        "evidence_boxes": rows[:, 1:5],
        "evidence_context_boxes": rows[:, 5:9],
    }
