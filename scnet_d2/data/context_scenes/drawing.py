"""The drawings of Context Scenes: surfaces, sprites and the textures of the context pairs."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import cv2
import numpy as np

__all__ = [
    "MIN_SIDE",
    "SURFACES",
    "draw_sprite",
    "draw_texture",
    "log_uniform",
    "paint_apron",
    "paint_surface",
    "paste",
    "smooth_noise",
]

MIN_SIDE = 8  # px, shortest side of any sprite


def _colour(
    rng: np.random.Generator,
    hue: tuple[float, float] = (0, 1),
    sat: tuple[float, float] = (0, 1),
    val: tuple[float, float] = (0, 1),
) -> np.ndarray:
    """A random colour, (3,) BGR in 0..255; each argument is a range in 0..1 (hue may wrap)."""
    h, s, v = (rng.uniform(*span) for span in (hue, sat, val))
    return 255 * np.array(colorsys.hsv_to_rgb(h % 1, s, v)[::-1])


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw from low..high, every factor equally likely."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """(H, W) float32 noise of about unit variance with features of about `cell` px."""
    height, width = shape
    coarse = rng.standard_normal((int(height / cell) + 3, int(width / cell) + 3), np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


# ---- Surfaces: (H, W) → (H, W, 3) float32 BGR ---------------------------------------------------


def _tint(value: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Scale a colour by (H, W) relative brightness."""
    return value[..., None] * colour.astype(np.float32)


def _rotated(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (H, W) along and across a random direction."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _water(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    _, across = _rotated(rng, shape)
    phase = 2 * math.pi * across / rng.uniform(6, 11) + 1.6 * smooth_noise(rng, shape, 16)
    crest = np.maximum(np.sin(phase), 0) ** 3 * (0.6 + 0.4 * smooth_noise(rng, shape, 9))
    colour = _colour(rng, (0.51, 0.60), (0.45, 0.75), (0.45, 0.75))
    return _tint(0.92 + 0.06 * smooth_noise(rng, shape, 24) + 0.28 * crest, colour)


def _snow(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    value = 1 + 0.05 * smooth_noise(rng, shape, 22) + 0.035 * smooth_noise(rng, shape, 1.5)
    colour = _colour(rng, (0.55, 0.65), (0.02, 0.10), (0.72, 0.95))
    return _tint(value, colour)


def _grass(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    blades = cv2.blur(smooth_noise(rng, shape, 1), (1, 4))
    value = 1 + 0.09 * smooth_noise(rng, shape, 14) + 0.26 * blades
    return _tint(value, _colour(rng, (0.22, 0.34), (0.40, 0.70), (0.40, 0.68)))


def _sand(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    _, across = _rotated(rng, shape)
    ripple = np.sin(2 * math.pi * across / rng.uniform(9, 16) + 2.2 * smooth_noise(rng, shape, 20))
    value = 1 + 0.04 * ripple + 0.06 * smooth_noise(rng, shape, 1)
    return _tint(value, _colour(rng, (0.09, 0.13), (0.28, 0.50), (0.66, 0.90)))


def _asphalt(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    along, across = _rotated(rng, shape)
    value = 1 + 0.05 * smooth_noise(rng, shape, 18) + 0.09 * smooth_noise(rng, shape, 1)
    image = _tint(value, _colour(rng, (0.6, 0.7), (0.0, 0.08), (0.26, 0.46)))
    lane = np.mod(across + rng.uniform(0, 40), rng.uniform(34, 60)) < 1.8
    image[lane & (np.mod(along, 16) < 9)] *= 1.7
    return image


def _rock(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    size = rng.uniform(6, 11)
    x, y = (t / size + 0.3 * smooth_noise(rng, shape, 9) + 4 for t in (x, y))
    facets = rng.uniform(0.68, 1.2, (40, 40)).astype(np.float32)
    value = cv2.remap(facets, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP)
    value += 0.07 * smooth_noise(rng, shape, 1.5) + 0.05 * smooth_noise(rng, shape, 20)
    return _tint(value, _colour(rng, (0.03, 0.09), (0.14, 0.34), (0.42, 0.70)))


_SURFACES: dict[str, Callable] = {
    "water": _water,
    "snow": _snow,
    "grass": _grass,
    "sand": _sand,
    "asphalt": _asphalt,
    "rock": _rock,
}
SURFACES = tuple(_SURFACES)


def paint_surface(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> np.ndarray:
    """One of `SURFACES` as an image (H, W, 3) float32 BGR, of varying colour and texture."""
    return _SURFACES[name](rng, shape)


def paint_apron(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Gravel that tells nothing, (H, W, 3) float32."""
    value = 1 + 0.05 * smooth_noise(rng, shape, 1)
    return _tint(value, _colour(rng, (0, 1), (0.0, 0.06), (0.45, 0.7)))


# ---- Sprites: (64, 64, 4) uint8 BGRA, colour premultiplied by alpha -----------------------------

_SPRITE = 64
_CIRCLE = np.array([(math.cos(t), math.sin(t)) for t in np.arange(32) * math.pi / 16])  # (32, 2)


def _fill(canvas: np.ndarray, outline: np.ndarray, colour: np.ndarray) -> None:
    """Fill an outline (n, 2), given in units of half the canvas around its centre."""
    points = np.round((np.asarray(outline) + 1) * _SPRITE / 2 * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], (*np.clip(colour, 0, 255), 255), cv2.LINE_AA, shift=4)


def _ellipse(x: float, y: float, rx: float, ry: float, power: float = 2) -> np.ndarray:
    """Outline (32, 2) of a super-ellipse; a power above 2 makes it squarer."""
    return np.array([x, y]) + np.array([rx, ry]) * np.sign(_CIRCLE) * np.abs(_CIRCLE) ** (2 / power)


def _person(rng: np.random.Generator, canvas: np.ndarray) -> None:
    shirt = _colour(rng, (0, 1), (0.5, 1.0), (0.4, 0.95))
    _fill(canvas, _ellipse(0, 0, 0.9, rng.uniform(0.45, 0.6)), shirt)
    _fill(
        canvas,
        _ellipse(0, -0.08, 0.36, 0.4),
        _colour(rng, (0.02, 0.09), (0.3, 0.6), (0.15, 0.8)),
    )


def _tree(rng: np.random.Generator, canvas: np.ndarray) -> None:
    colour = _colour(rng, (0.22, 0.42), (0.45, 0.8), (0.22, 0.5))
    for angle in np.arange(9) * 2 * math.pi / 9 + rng.uniform(-0.2, 0.2, 9):
        x, y = 0.58 * math.cos(angle), 0.58 * math.sin(angle)
        _fill(canvas, _ellipse(x, y, 0.34, 0.34), colour * rng.uniform(0.75, 1.0))
    _fill(canvas, _ellipse(0, 0, 0.62, 0.62), colour * 0.9)
    for x, y in rng.uniform(-0.45, 0.35, (7, 2)):
        _fill(canvas, _ellipse(x, y, 0.17, 0.17), colour * rng.uniform(1.15, 1.6))


def _car(rng: np.random.Generator, canvas: np.ndarray) -> None:
    width = rng.uniform(0.4, 0.48)
    body, glass = (
        _colour(rng, (0, 1), (0.1, 0.95), (0.45, 1)),
        _colour(rng, (0.6, 0.7), (0, 0.3), (0.05, 0.2)),
    )
    _fill(canvas, _ellipse(0, 0, 0.95, width, 6), body)
    _fill(canvas, _ellipse(0.28, 0, 0.16, width * 0.85, 6), glass)
    _fill(canvas, _ellipse(-0.6, 0, 0.11, width * 0.8, 6), glass)
    _fill(canvas, _ellipse(-0.17, 0, 0.3, width * 0.8, 6), body * 1.15)


def _boat(rng: np.random.Generator, canvas: np.ndarray) -> None:
    width, stern = rng.uniform(0.34, 0.46), rng.uniform(0.7, 0.9)
    t = np.linspace(-0.95, 0.95, 12)
    half = width * np.where(t < 0, 1 - (1 - stern) * t**2, np.sqrt(np.maximum(0.95 - t, 0)))
    hull = np.concatenate([np.stack([t, half], 1), np.stack([t, -half], 1)[::-1]])
    _fill(canvas, hull, _colour(rng, (0, 1), (0.0, 0.8), (0.65, 1)))
    _fill(canvas, hull * 0.68, _colour(rng, (0.05, 0.1), (0.35, 0.7), (0.3, 0.6)))
    _fill(
        canvas,
        _ellipse(-0.2, 0, 0.22, width * 0.5, 5),
        _colour(rng, (0, 1), (0, 0.2), (0.8, 1)),
    )


def _sheep(rng: np.random.Generator, canvas: np.ndarray) -> None:
    wool = _colour(rng, (0.08, 0.14), (0.0, 0.18), (0.75, 1))
    _fill(
        canvas,
        _ellipse(0.72, 0, 0.24, 0.2),
        _colour(rng, (0, 0.1), (0, 0.4), (0.05, 0.25)),
    )
    for angle in np.arange(8) * math.pi / 4 + rng.uniform(-0.2, 0.2, 8):
        x, y = 0.42 * math.cos(angle) - 0.15, 0.28 * math.sin(angle)
        _fill(canvas, _ellipse(x, y, 0.3, 0.28), wool * rng.uniform(0.85, 1))
    _fill(canvas, _ellipse(-0.15, 0, 0.4, 0.3), wool)


def _cone(rng: np.random.Generator, canvas: np.ndarray) -> None:
    orange = _colour(rng, (0.0, 0.08), (0.75, 1), (0.7, 1))
    _fill(canvas, _ellipse(0, 0, 0.66, 0.66, 9), orange * 0.7)
    _fill(canvas, _ellipse(0, 0, 0.52, 0.52), orange)
    _fill(canvas, _ellipse(0, 0, 0.38, 0.38), _colour(rng, (0, 1), (0, 0.1), (0.8, 1)))
    _fill(canvas, _ellipse(0, 0, 0.2, 0.2), orange)


def _blob(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Clutter: a stone or a bush, the silhouette of a sheep or a tree without its parts."""
    outline = _ellipse(0, 0, rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.8), rng.uniform(1.7, 3))
    hue, sat = ((0.2, 0.4), (0.3, 0.7)) if rng.random() < 0.5 else ((0.05, 0.12), (0, 0.3))
    colour = _colour(rng, hue, sat, (0.3, 0.95))
    _fill(canvas, outline, colour * 0.8)
    _fill(canvas, outline * 0.8 - 0.06, colour)


def _slab(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Clutter: a plain board, box or canoe, the silhouette of a car, a boat or a cone."""
    outline = _ellipse(0, 0, 0.9, rng.uniform(0.3, 0.9), rng.choice([1.4, 2, 7]))
    colour = _colour(rng, (0, 1), (0.1, 0.9), (0.3, 1))
    _fill(canvas, outline, colour)
    _fill(canvas, outline * 0.75, colour * rng.uniform(0.75, 1.1))


def _pole(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Occluder: a plank, pipe or trunk."""
    colour = _colour(rng, (0, 1), (0, 0.5), (0.15, 0.9))
    width = rng.uniform(0.12, 0.26)
    _fill(canvas, _ellipse(0, 0, 0.98, width, 8), colour)
    _fill(canvas, _ellipse(0, -0.3 * width, 0.95, 0.3 * width, 8), colour * 1.2)


def _canopy(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Occluder: foliage of any colour."""
    colour = _colour(rng, (0, 1), (0.1, 0.7), (0.2, 0.8))
    for x, y in rng.uniform(-0.6, 0.6, (9, 2)):
        _fill(canvas, _ellipse(x, y, 0.28, 0.28), colour * rng.uniform(0.7, 1.1))


_DRAW_SPRITE: dict[str, Callable] = {
    "person": _person,
    "tree": _tree,
    "car": _car,
    "boat": _boat,
    "sheep": _sheep,
    "cone": _cone,
    "blob": _blob,
    "slab": _slab,
    "pole": _pole,
    "canopy": _canopy,
}


def draw_sprite(rng: np.random.Generator, name: str, size: float) -> np.ndarray:
    """Draw one sprite at a random angle: (h, w, 4) float32, cut to its tight box."""
    canvas = np.zeros((_SPRITE, _SPRITE, 4), np.uint8)
    _DRAW_SPRITE[name](rng, canvas)
    turn = cv2.getRotationMatrix2D((_SPRITE / 2 - 0.5,) * 2, rng.uniform(0, 360), 1.0)
    turn[:, 2] += _SPRITE / 4
    canvas = cv2.warpAffine(canvas, turn, (_SPRITE * 3 // 2,) * 2, flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect((canvas[..., 3] > 127).astype(np.uint8))
    scale = max(size / max(w, h), MIN_SIDE / min(w, h))
    target = max(MIN_SIDE, round(w * scale)), max(MIN_SIDE, round(h * scale))
    cut = canvas[y : y + h, x : x + w].astype(np.float32)
    return cv2.resize(cut, target, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def paste(image: np.ndarray, sprite: np.ndarray, x: int, y: int, opacity: float = 1.0) -> None:
    """Lay a premultiplied sprite (h, w, 4) over image (H, W, 3) in place; parts outside are cut."""
    height, width = image.shape[:2]
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + sprite.shape[1], width), min(y + sprite.shape[0], height)
    part = sprite[y0 - y : y1 - y, x0 - x : x1 - x] * opacity
    image[y0:y1, x0:x1] *= 1 - part[..., 3:] / 255
    image[y0:y1, x0:x1] += part[..., :3]


# ---- Textures of the pairs: opaque, the same for both members -----------------------------------


def _planks(rng: np.random.Generator) -> np.ndarray:
    """Boards side by side under two cross beams."""
    boards = int(rng.integers(4, 8))
    shade = np.repeat(rng.uniform(0.75, 1.1, boards), 12)
    shade[::12] = 0.45
    value = np.tile(shade[:, None], (1, 64)).astype(np.float32)
    for start in (10, 46):
        value[:, start : start + 7] = rng.uniform(0.5, 0.65)
    return _tint(value, _colour(rng, (0.04, 0.11), (0.4, 0.75), (0.45, 0.9)))


def _cloth(rng: np.random.Generator) -> np.ndarray:
    """Stripes or checks of two colours with a hem."""
    hue = rng.random()
    first = _colour(rng, (hue, hue), (0.55, 1), (0.5, 1))
    second = _colour(rng, (hue + 0.3, hue + 0.7), (0.1, 0.7), (0.6, 1))
    period = int(rng.choice([8, 11, 16]))
    stripes = np.arange(64) // period % 2 == 0
    pattern = stripes[:, None] ^ (stripes[None] & (rng.random() < 0.4))
    image = np.where(pattern[..., None], first, second).astype(np.float32)
    cv2.rectangle(image, (0, 0), (63, 63), (0.8 * first).tolist(), 5)
    return image


def _corrugated(rng: np.random.Generator) -> np.ndarray:
    """Fine ribs of one colour in a dark frame."""
    ribs = np.sin(np.arange(64) * 2 * math.pi / rng.uniform(6, 10))
    value = np.tile(0.85 + 0.25 * ribs, (64, 1)).astype(np.float32)
    image = _tint(value, _colour(rng, (0, 1), (0.35, 0.8), (0.4, 0.85)))
    cv2.rectangle(image, (0, 0), (63, 63), (0.4 * image.mean((0, 1))).tolist(), 4)
    return image


def _panes(rng: np.random.Generator) -> np.ndarray:
    """A pale grid over panes of varying brightness."""
    rows, columns = rng.integers(3, 6, 2)
    panes = rng.uniform(0.3, 0.7, (rows, columns)).astype(np.float32)
    panes = np.kron(panes, np.ones((12, 12), np.float32))
    image = _tint(panes, _colour(rng, (0.3, 0.75), (0.05, 0.4), (0.6, 1)))
    frame = _colour(rng, (0, 1), (0, 0.12), (0.85, 1))
    for i in range(2):
        image[i::12], image[-1 - i :: -12], image[:, i::12], image[:, -1 - i :: -12] = (frame,) * 4
    return image


_TEXTURES: dict[str, Callable] = {
    "planks": _planks,
    "cloth": _cloth,
    "corrugated": _corrugated,
    "panes": _panes,
}


def draw_texture(
    rng: np.random.Generator, name: str, size: tuple[int, int], blur: float
) -> np.ndarray:
    """An opaque rectangle (h, w, 3) float32 of the size (w, h), blurred on its own support."""
    texture = _TEXTURES[name](rng)
    if rng.random() < 0.5:
        texture = np.ascontiguousarray(texture.transpose(1, 0, 2))
    patch = cv2.resize(texture, size, interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(patch, (0, 0), blur, borderType=cv2.BORDER_REPLICATE)
