"""Annotated boxes made safe for training: clipped to the image, degenerate ones dropped."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from .problems import counted

logger = logging.getLogger(__name__)

LONGEST_SIDE = 2**31 - 1  # of an image, in pixels: the limit of PNG, far above that of JPEG


def clip_box(box: Sequence[float], width: float, height: float) -> list[float] | None:
    """Clip an XYXY box in pixels to the image.

    Returns:
        The clipped box, or None if nothing with an area is left: an empty, inverted or outside
        box, or one with a coordinate that is not finite.

    Example:
        >>> clip_box([-5, 10, 30, 200], width=100, height=80)
        [0.0, 10, 30, 80.0]
        >>> clip_box([120, 10, 130, 20], width=100, height=80)  # outside
    """
    if not all(map(math.isfinite, box)):
        return None
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[2], float(width)), min(box[3], float(height))
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else None


def clip_annotations(records: list[dict[str, Any]], dataset_name: str) -> None:
    """Clip every XYXY box of the dataset dicts in place and drop the degenerate ones.

    An annotation says that its class is in the image even if its box cannot be used: it moves,
    without ``bbox``, to ``annotations_without_box``. One warning gives the number of them. Where
    boxes end more than a pixel past the right or lower edge, ``boxes_past_edge`` counts them.
    """
    dropped = 0
    for record in records:
        annotations = record["annotations"]
        right, lower = record["width"] + 1, record["height"] + 1
        past = sum(a["bbox"][2] > right or a["bbox"][3] > lower for a in annotations)
        if past:
            record["boxes_past_edge"] = past
        for annotation in annotations:
            annotation["bbox"] = clip_box(annotation["bbox"], record["width"], record["height"])
        record["annotations"] = [a for a in annotations if a["bbox"] is not None]
        record["annotations_without_box"] = [
            {key: value for key, value in a.items() if not key.startswith("bbox")}
            for a in annotations
            if a["bbox"] is None
        ]
        dropped += len(record["annotations_without_box"])
    if dropped:
        logger.warning(
            f"{dataset_name}: left out {counted(dropped, 'box')}, empty, inverted, "
            "outside the image or not finite; the labels still count."
        )
