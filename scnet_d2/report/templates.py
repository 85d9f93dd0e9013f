"""The HTML templates, and what they ask of Python: numbers, colours, places of badges, pictures.

Every value is escaped, and one that is missing is an error.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image

from ..inference.visualizer import COLORS

BADGE_SIDE = 24.0  # in units of the drawing


class DrawnBox(NamedTuple):
    """A label's boxes in a picture: XYXY in pixels of the original image."""

    number: int
    tight: np.ndarray  # (4,)
    context: np.ndarray  # (4,), nan without one
    ratio: float = math.nan  # of the context box, where the box has chosen it


def number(value: float | None, digits: int = 0) -> str:
    """A number with so many digits after the point; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def short(count: int) -> str:
    """A count in at most four characters, such as 1.2k."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f}{unit}"
    return str(count)


def color(number: int) -> str:
    """Colour of a numbered label."""
    return COLORS[(number - 1) % len(COLORS)]


def jpeg_url(image: np.ndarray, side: int) -> str:
    """An (H, W, 3) uint8 RGB image as a data URL, its long side reduced to ``side`` pixels."""
    reduced = Image.fromarray(image)
    reduced.thumbnail((side, side))
    buffer = io.BytesIO()
    reduced.save(buffer, "JPEG", quality=82, optimize=True)
    return _data_url("jpeg", buffer)


def png_url(image: np.ndarray) -> str:
    """An (H, W, 4) uint8 RGBA image as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return _data_url("png", buffer)


def _data_url(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def badge_places(
    boxes: Sequence[DrawnBox], scale: float, size: tuple[float, float]
) -> Iterator[tuple[int, float, float]]:
    """Numbers above the top left of the tight boxes, moved on where another stands already.

    Args:
        boxes: the first keeps its place.
        scale: units of the drawing to a pixel of the image.
        size: (height, width) of the image in pixels.

    Yields:
        Number, and x and y of the top left of its badge in units of the drawing.
    """
    taken = []
    bottom, right = (scale * side - BADGE_SIDE for side in size)
    for box in boxes:
        x = min(max(box.tight[0] * scale, 0), right)
        y = min(max(box.tight[1] * scale - BADGE_SIDE, 0), bottom)
        while any(abs(x - tx) < BADGE_SIDE and abs(y - ty) < BADGE_SIDE for tx, ty in taken):
            x, y = (x + BADGE_SIDE, y) if x + BADGE_SIDE <= right else (0.0, y + BADGE_SIDE)
        taken.append((x, y))
        yield box.number, x, y


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("scnet_d2", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters.update(number=number, short=short, color=color, log10=math.log10)
TEMPLATES.globals.update(badge_places=badge_places)
