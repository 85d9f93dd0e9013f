"""Context Scenes: a small generated multi-label data set in COCO format.

Aerial scenes of 160 px with several surfaces (water, snow, grass, ...), 14 classes, clutter and
occlusion. Eight classes form four `CONTEXT_PAIRS`: both members of a pair are the same opaque
rectangle, and the class is the surface that it lies on. Everything that decides the pixels of such
an object (size, aspect, texture, blur, occluder, exposure, noise) is drawn without looking at the
surface, and the object is pasted after the background has been blurred: its tight crop carries no
information on which member it is. Boxes cover the whole object, its hidden part included.

The data set is written once, on first use or by

    python -m scnet_d2.data.context_scenes [--root DIR] [--contact-sheet FILE.png]
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import cv2
import numpy as np
from iopath.common.file_io import file_lock
from tqdm import tqdm

from .drawing import (
    MIN_SIDE,
    draw_sprite,
    draw_texture,
    log_uniform,
    paint_apron,
    paint_surface,
    paste,
    smooth_noise,
)

logger = logging.getLogger(__name__)

VERSION = "1.0"  # to be raised with every change of the pixels
FOLDER = "context_scenes"
SPLITS = ("train", "val", "test")
CONTEXT_PAIRS: tuple[tuple[str, str], ...] = (
    ("raft", "sledge"),
    ("blanket", "towel"),
    ("container", "shelter"),
    ("cage", "greenhouse"),
)
TEXTURE_OF = dict(zip(CONTEXT_PAIRS, ("planks", "cloth", "corrugated", "panes"), strict=True))
# The deciding surface of each member of a pair.
SURFACE_OF = {
    "raft": "water",
    "sledge": "snow",
    "blanket": "grass",
    "towel": "sand",
    "container": "asphalt",
    "shelter": "rock",
    "cage": "water",
    "greenhouse": "grass",
}
# The surfaces on which the other classes are found.
HOMES = {
    "person": ("sand", "grass", "asphalt", "snow"),
    "tree": ("grass", "rock", "snow"),
    "car": ("asphalt", "sand"),
    "boat": ("water",),
    "sheep": ("grass", "rock"),
    "cone": ("asphalt",),
}
CLASSES: tuple[str, ...] = (*HOMES, *SURFACE_OF)
# A further pair, of scenes with companions alone: the class is which of two objects is nearer.
COMPANION_OF = {"trough": "sheep", "charger": "car"}

# ---- Difficulty: ranges are (low, high), drawn uniformly unless stated --------------------------

DIFFICULTY = {
    "long_side": 160,  # px
    "short_side": (120, 160),  # px
    "contrast": (0.5, 1.0),  # gain of the whole image around mid-grey
    "brightness": (-22.0, 22.0),  # offset of the whole image, grey levels
    "noise": (3.0, 13.0),  # standard deviation of the pixel noise, grey levels
    "blur": (0.45, 1.1),  # sigma, px: of the background, and of each pair object on its own
    "opacity": (0.75, 1.0),  # of clutter and of the classes outside the pairs
    "clutter": (2, 6),  # unlabelled look-alike shapes in an image
    "occluded": 0.35,  # share of the objects that get an occluder
    "min_visible": 0.4,  # least visible share of any object
    "pair_rate": 0.85,  # share of the images with pair objects
    "both_surfaces": 0.7,  # share of the images that hold both surfaces of their pair
    "pair_size": (10, 72),  # px, longer side, log-uniform
    "sizes": {  # px, longer side, log-uniform
        "person": (9, 28),
        "tree": (12, 80),
        "car": (14, 80),
        "boat": (14, 90),
        "sheep": (9, 44),
        "cone": (8, 26),
    },
    "flock": {"person": 3, "tree": 2, "car": 2, "boat": 2, "sheep": 4, "cone": 3},  # at most
    "max_objects": 8,
}


@dataclass(frozen=True)
class SceneConfig:
    """What may vary from one generated set to the next.

    Args:
        seed: of the whole set; image i of a split depends on (seed, split, i) alone.
        sizes: number of images in train, val and test.
        cue_gap: distance from a pair object to the surface that decides its class, in box widths
            (and heights); a class-neutral apron lies between. At 0 the surface touches the box.
        misplaced: share of the object groups outside the pairs that lie on a surface where they
            do not belong.
        max_pair_size: most px of a pair object's longer side. A wide cue_gap leaves room for small
            objects alone: sets to be compared over gaps need one small limit.
        companions: share of the images that hold, in the place of a pair of the surfaces, an object
            that only another one at a distance tells apart, see `COMPANION_OF`. Half of these
            images hold the other companion too, farther away.
        companion_gap: least distance to the companion, in sides of the object.
    """

    seed: int = 1
    sizes: tuple[int, int, int] = (2000, 500, 500)
    cue_gap: float = 0.0
    misplaced: float = 0.05
    max_pair_size: int = DIFFICULTY["pair_size"][1]
    companions: float = 0.0
    companion_gap: float = 1.0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes: `CLASSES`, and the pair with companions where there is one."""
        return (*CLASSES, *COMPANION_OF) if self.companions else CLASSES

    def describe(self) -> dict:
        """The JSON `info` block: everything that decides the pixels."""
        info = {"description": "Context Scenes", "version": VERSION, **asdict(self)}
        pair_size = DIFFICULTY["pair_size"][0], info.pop("max_pair_size")
        if not self.companions:  # such a set is as it was before there were any
            del info["companions"], info["companion_gap"]
        info["difficulty"] = {**DIFFICULTY, "pair_size": pair_size}
        return json.loads(json.dumps(info))


@dataclass(frozen=True)
class _Kind:
    """A kind of scene: share of the images, surfaces, pair, and companion classes with weights."""

    share: float
    surfaces: tuple[str, ...]
    pair: tuple[str, str]
    companions: dict[str, float]


# fjord, ski slope, beach, mountain road, quay, farm
_KINDS = (
    _Kind(
        0.16,
        ("water", "snow", "rock", "grass"),
        ("raft", "sledge"),
        {"boat": 3, "person": 1, "tree": 2},
    ),
    _Kind(
        0.11,
        ("snow", "water", "asphalt", "grass"),
        ("raft", "sledge"),
        {"person": 1.5, "tree": 2, "car": 1, "cone": 1},
    ),
    _Kind(
        0.25,
        ("sand", "grass", "water", "asphalt"),
        ("blanket", "towel"),
        {"person": 3, "boat": 2, "car": 2, "tree": 1.5},
    ),
    _Kind(
        0.12,
        ("asphalt", "rock", "snow", "grass"),
        ("container", "shelter"),
        {"car": 3, "sheep": 1, "tree": 2, "cone": 1},
    ),
    _Kind(
        0.12,
        ("asphalt", "rock", "water", "sand"),
        ("container", "shelter"),
        {"car": 2, "cone": 3, "person": 1.5, "boat": 2},
    ),
    _Kind(
        0.24,
        ("grass", "water", "rock", "asphalt"),
        ("cage", "greenhouse"),
        {"sheep": 4, "tree": 1.5, "boat": 1, "car": 1, "person": 0.7},
    ),
)


# ---- Composition --------------------------------------------------------------------------------


@dataclass
class _Object:
    """A labelled object: tight box (x, y, w, h), own pixels `mask` (h, w), `pixels` (h, w, 3|4)."""

    name: str
    surface: str
    box: tuple[int, int, int, int]
    mask: np.ndarray
    pixels: np.ndarray


@dataclass
class _Scene:
    """A scene under construction.

    `cells` (H, W) holds the region of each pixel and `surfaces` the surface of each region.
    `owner` (H, W) is the index of the topmost object, -1 for the ground, -2 for an occluder.
    `front` (H, W) marks pair objects, their aprons and occluders, which lie over all that follows.
    """

    rng: np.random.Generator
    kind: _Kind
    cells: np.ndarray
    surfaces: list[str]
    owner: np.ndarray
    front: np.ndarray
    objects: list[_Object] = field(default_factory=list)
    front_occluders: list[tuple[np.ndarray, int, int]] = field(default_factory=list)
    neighbours: list[_Object] = field(default_factory=list)  # companions, drawn before the blur

    @property
    def shape(self) -> tuple[int, int]:
        return self.cells.shape

    def visible(self) -> np.ndarray:
        """Visible share of each object, (K,)."""
        counts = np.bincount(self.owner[self.owner >= 0], minlength=len(self.objects))
        return counts / [item.mask.sum() for item in self.objects]

    @contextmanager
    def unless_hidden(self) -> Iterator[list[bool]]:
        """Undo what the block adds when it leaves too little of some object visible.

        Yields:
            A list that holds one bool afterwards: whether the addition stayed.
        """
        owner, count, kept = self.owner.copy(), len(self.objects), []
        yield kept
        kept.append(bool(self.visible().min() >= DIFFICULTY["min_visible"]))
        if not kept[0]:
            self.owner = owner
            del self.objects[count:]


def _cells(rng: np.random.Generator, shape: tuple[int, int], count: int) -> np.ndarray:
    """Split an image into `count` regions with curved borders, (H, W): a warped Voronoi map."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + 7 * smooth_noise(rng, shape, 36), y + 7 * smooth_noise(rng, shape, 36)
    seeds = rng.uniform(0.08, 0.92, (1, 2))
    while len(seeds) < count:  # far from the earlier ones, so that no region is tiny
        options = rng.uniform(0.08, 0.92, (8, 2))
        distance = np.linalg.norm(options[:, None] - seeds[None], axis=2).min(axis=1)
        seeds = np.concatenate([seeds, options[[distance.argmax()]]])
    distances = [(x - width * sx) ** 2 + (y - height * sy) ** 2 for sx, sy in seeds]
    return np.argmin(distances, axis=0)


def _choose_surfaces(rng: np.random.Generator, kind: _Kind) -> list[str]:
    """Two to four surfaces in random order, treating the two of the pair alike."""
    own = [SURFACE_OF[name] for name in kind.pair]
    others = [surface for surface in kind.surfaces if surface not in own]
    rng.shuffle(own)
    rng.shuffle(others)
    kept = 2 if rng.random() < DIFFICULTY["both_surfaces"] else 1
    chosen = (own[:kept] + others)[: rng.choice([2, 3, 4], p=[0.25, 0.5, 0.25])]
    rng.shuffle(chosen)
    return chosen


def _new_scene(rng: np.random.Generator) -> _Scene:
    short = int(rng.integers(*DIFFICULTY["short_side"], endpoint=True))
    shape = (DIFFICULTY["long_side"], short)[:: rng.choice([1, -1])]
    kind = _KINDS[rng.choice(len(_KINDS), p=[kind.share for kind in _KINDS])]
    surfaces = _choose_surfaces(rng, kind)
    cells = _cells(rng, shape, len(surfaces))
    owner = np.full(shape, -1, np.int32)
    return _Scene(rng, kind, cells, surfaces, owner, np.zeros(shape, bool))


def _box_sums(mask: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Number of true pixels of mask (H, W) inside each box of (K, 4) XYXY: (K,)."""
    table = cv2.integral(mask.astype(np.uint8))
    x0, x1 = np.clip(boxes[:, 0::2], 0, mask.shape[1]).astype(int).T
    y0, y1 = np.clip(boxes[:, 1::2], 0, mask.shape[0]).astype(int).T
    return table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]


def _grow(boxes: np.ndarray, share: float) -> np.ndarray:
    """Grow boxes (..., 4) XYXY on each side by a share of their width and height, whole pixels."""
    margin = np.round(share * (boxes[..., 2:] - boxes[..., :2])).astype(int)
    return boxes + np.concatenate([-margin, margin], axis=-1)


def _xyxy(x: int, y: int, w: int, h: int) -> np.ndarray:
    return np.array([x, y, x + w, y + h])


def _fill_box(mask: np.ndarray, box: np.ndarray) -> None:
    """Set a box (4,) XYXY of mask (H, W), cut at its border."""
    x0, y0, x1, y1 = np.maximum(box, 0)
    mask[y0:y1, x0:x1] = True


def _find_place(
    scene: _Scene, cell: int, size: tuple[int, int], aprons: np.ndarray, gap: float
) -> tuple[int, int] | None:
    """Top-left corner where a pair object has its cell around the apron. Looks at geometry alone.

    Args:
        scene: the scene, for its cells.
        cell: index of the region.
        size: (w, h) of the object.
        aprons: (H, W) bool, what the earlier pair objects and their aprons take.
        gap: width of the apron in box widths.

    Returns:
        (x, y), or None where there is no room.
    """
    height, width = scene.shape
    region = scene.cells == cell
    centres = scene.rng.choice(np.flatnonzero(region), 40)
    corner = np.stack([centres % width, centres // width], axis=1) - np.array(size) // 2
    boxes = np.concatenate([corner, corner + size], axis=1)
    fits = (corner >= 1).all(axis=1) & (boxes[:, 2:] < [width, height]).all(axis=1)
    inner, outer = _grow(boxes, gap), _grow(boxes, gap + 0.5)
    ring, own = (_box_sums(m, outer) - _box_sums(m, inner) for m in (region | True, region))
    fits &= (own >= 0.75 * ring) & (ring > 0)
    fits &= _box_sums(aprons, _grow(boxes, gap + 0.15)) == 0
    return tuple(corner[fits.argmax()].tolist()) if fits.any() else None


def _place_pair_object(
    scene: _Scene, cell: int, aprons: np.ndarray, gap: float, high: float
) -> None:
    """Put one object of the scene's pair into a cell, smaller where there is no room."""
    low = DIFFICULTY["pair_size"][0]
    longer, aspect = log_uniform(scene.rng, low, high), log_uniform(scene.rng, 0.6, 1 / 0.6)
    place = None
    while place is None and longer >= low:
        size = [max(low, round(longer * min(1, a))) for a in (aspect, 1 / aspect)]
        place = _find_place(scene, cell, size, aprons, gap)
        longer *= 0.85
    if place is None:
        return
    surface = scene.surfaces[cell]
    name = next(name for name in scene.kind.pair if SURFACE_OF[name] == surface)
    blur = scene.rng.uniform(*DIFFICULTY["blur"])
    pixels = draw_texture(scene.rng, TEXTURE_OF[scene.kind.pair], size, blur)
    _add(scene, _Object(name, surface, (*place, *size), np.ones(size[::-1], bool), pixels))
    _fill_box(aprons, _grow(_xyxy(*place, *size), gap))


def _place_with_companion(scene: _Scene, gap: float) -> None:
    """An object on any surface, its companion `gap` sides away, and perhaps the other one farther.

    All that decides the pixels of the object is drawn before its class.
    """
    rng = scene.rng
    size = (w, h) = [round(log_uniform(rng, 12, 22)) for _ in range(2)]
    pixels = draw_texture(rng, "panes", size, rng.uniform(*DIFFICULTY["blur"]))
    height, width = scene.shape
    x, y = int(rng.integers(1, width - w)), int(rng.integers(1, height - h))
    name, other = rng.permutation(list(COMPANION_OF)).tolist()
    nearest = _place_neighbour(scene, COMPANION_OF[name], _xyxy(x, y, w, h), gap, gap + 0.7)
    if nearest and rng.random() < 0.5:
        _place_neighbour(scene, COMPANION_OF[other], _xyxy(x, y, w, h), gap + 1.4, gap + 3.0)
    if nearest:
        surface = scene.surfaces[scene.cells[y + h // 2, x + w // 2]]
        _add(scene, _Object(name, surface, (x, y, w, h), np.ones((h, w), bool), pixels))
        _fill_box(scene.front, _xyxy(x, y, w, h))
    else:
        scene.neighbours.clear()


def _place_neighbour(scene: _Scene, name: str, box: np.ndarray, near: float, far: float) -> bool:
    """Put a companion between `near` and `far` sides away from a box (4,); False: no room."""
    rng = scene.rng
    sprite = draw_sprite(rng, name, rng.uniform(14, 20))
    h, w = sprite.shape[:2]
    height, width = scene.shape
    for _ in range(40):
        x, y = int(rng.integers(1, max(2, width - w))), int(rng.integers(1, max(2, height - h)))
        away = np.maximum(box[:2] - [x + w, y + h], [x, y] - box[2:]) / (box[2:] - box[:2])
        others = [_xyxy(*item.box) for item in scene.neighbours]
        free = all((b[:2] > [x + w, y + h]).any() or (b[2:] < [x, y]).any() for b in others)
        if free and near <= away.max() <= far and x + w < width and y + h < height:
            mask, surface = (
                sprite[..., 3] > 127,
                scene.surfaces[scene.cells[y + h // 2, x + w // 2]],
            )
            scene.neighbours.append(_Object(name, surface, (x, y, w, h), mask, sprite))
            return True
    return False


def _add(scene: _Scene, item: _Object) -> None:
    """Append an object, under the front objects and over the others."""
    x, y, w, h = item.box
    hidden = scene.front[y : y + h, x : x + w]
    scene.owner[y : y + h, x : x + w][item.mask & ~hidden] = len(scene.objects)
    scene.objects.append(item)


def _place_pairs(scene: _Scene, gap: float, max_size: float) -> None:
    """Pair objects and their occluders: the first to be placed, so that nothing bears on them."""
    rng = scene.rng
    if rng.random() > DIFFICULTY["pair_rate"]:
        return
    own = {SURFACE_OF[name] for name in scene.kind.pair}
    cells = [i for i, surface in enumerate(scene.surfaces) if surface in own]
    aprons = np.zeros(scene.shape, bool)
    cell = rng.choice(cells)
    for _ in range(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12])):
        _place_pair_object(scene, cell, aprons, gap, max_size)
        cell = cell if rng.random() < 0.5 else rng.choice(cells)
    for item in scene.objects:
        scene.front_occluders += _occluder(scene, item)
    scene.front = aprons | (scene.owner == -2)


def _occluder(scene: _Scene, item: _Object) -> list[tuple[np.ndarray, int, int]]:
    """Lay a pole or foliage over part of some objects: one (sprite, x, y), or none."""
    rng = scene.rng
    if rng.random() > DIFFICULTY["occluded"]:
        return []
    x, y, w, h = item.box
    name, scale = ("pole", (1.1, 1.7)) if rng.random() < 0.5 else ("canopy", (0.5, 0.85))
    sprite = draw_sprite(rng, name, math.sqrt(w * h) * rng.uniform(*scale))
    left = x + round(rng.uniform(0.1, 0.9) * w - sprite.shape[1] / 2)
    top = y + round(rng.uniform(0.1, 0.9) * h - sprite.shape[0] / 2)
    mask = np.zeros((*scene.shape, 3), np.float32)
    paste(mask, np.dstack([sprite[..., 3:]] * 4), left, top)
    with scene.unless_hidden() as kept:
        scene.owner[(mask[..., 0] > 127) & ~scene.front] = -2
    return [(sprite, left, top)] if kept[0] else []


def _background(scene: _Scene) -> np.ndarray:
    """Paint the surfaces and the shadows of the pair objects: (H, W, 3) float32."""
    image = np.zeros((*scene.shape, 3), np.float32)
    for cell, surface in enumerate(scene.surfaces):
        region = scene.cells == cell
        x, y, w, h = cv2.boundingRect(region.astype(np.uint8))
        region = region[y : y + h, x : x + w]
        image[y : y + h, x : x + w][region] = paint_surface(scene.rng, surface, (h, w))[region]
    for item in scene.objects:
        x, y, w, h = item.box
        drop = max(1, round(0.06 * max(w, h)))
        image[y + drop : y + h + drop, x + drop : x + w + drop] *= 0.6
    return image


def _scatter_clutter(scene: _Scene, image: np.ndarray) -> None:
    """Unlabelled shapes that resemble the classes, on any surface, under the objects."""
    rng = scene.rng
    for _ in range(rng.integers(*DIFFICULTY["clutter"], endpoint=True)):
        name = "blob" if rng.random() < 0.5 else "slab"
        sprite = draw_sprite(rng, name, log_uniform(rng, MIN_SIDE, 40))
        y, x = (int(rng.integers(-4, side - 4)) for side in scene.shape)
        paste(image, sprite, x, y, rng.uniform(*DIFFICULTY["opacity"]))


def _place_companion(scene: _Scene, image: np.ndarray, name: str, cell: int) -> None:
    """Put one object into a cell, over the earlier companions, if enough of all stays visible."""
    rng = scene.rng
    height, width = scene.shape
    sprite = draw_sprite(rng, name, log_uniform(rng, *DIFFICULTY["sizes"][name]))
    h, w = sprite.shape[:2]
    for centre in rng.choice(np.flatnonzero(scene.cells == cell), 6).tolist():
        x, y = centre % width - w // 2, centre // width - h // 2
        if x < 1 or y < 1 or x + w >= width or y + h >= height:
            continue
        with scene.unless_hidden() as kept:
            mask = sprite[..., 3] > 127
            _add(scene, _Object(name, scene.surfaces[cell], (x, y, w, h), mask, sprite))
        if kept[0]:
            paste(image, sprite, x, y, rng.uniform(*DIFFICULTY["opacity"]))
            return


def _place_companions(scene: _Scene, image: np.ndarray, misplaced: float) -> None:
    """One to three classes of the scene's kind, each with one or several objects."""
    rng, kind = scene.rng, scene.kind
    weights = np.array(list(kind.companions.values()))
    order = rng.choice(list(kind.companions), len(weights), False, weights / weights.sum())
    if scene.neighbours:  # none that would be another companion
        order = order[~np.isin(order, list(COMPANION_OF.values()))]
    for name in order[: rng.integers(1, 3, endpoint=True)].tolist():
        stray = rng.random() < misplaced
        cells = [i for i, s in enumerate(scene.surfaces) if (s in HOMES[name]) != stray]
        for _ in range(rng.integers(1, DIFFICULTY["flock"][name], endpoint=True)):
            if cells and len(scene.objects) < DIFFICULTY["max_objects"]:
                _place_companion(scene, image, name, rng.choice(cells))


def _paste_front(scene: _Scene, image: np.ndarray, gap: float) -> None:
    """Lay the aprons, the pair objects and their occluders over the blurred background."""
    pairs = [item for item in scene.objects if item.name not in HOMES]
    if gap > 0 and pairs:
        aprons = np.zeros(scene.shape, bool)
        for item in pairs:
            _fill_box(aprons, _grow(_xyxy(*item.box), gap))
        image[aprons] = paint_apron(scene.rng, scene.shape)[aprons]
    for item in pairs:
        x, y, w, h = item.box
        image[y : y + h, x : x + w] = item.pixels
    for sprite, x, y in scene.front_occluders:
        paste(image, sprite, x, y)


def _expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Global contrast and brightness and pixel noise, none of them a function of the content."""
    gain, offset = rng.uniform(*DIFFICULTY["contrast"]), rng.uniform(*DIFFICULTY["brightness"])
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(*DIFFICULTY["noise"])
    exposed = (image.clip(0, 255) - 128) * gain + 128 + offset + noise
    return exposed.clip(0, 255).round().astype(np.uint8)


def render_scene(config: SceneConfig, split: str, index: int) -> tuple[np.ndarray, dict]:
    """Draw one image of the set.

    Returns:
        The image (H, W, 3) uint8 BGR, and a dict of its `surfaces` and `annotations`, each with
        `name`, `bbox` [x, y, w, h] in whole pixels, `surface` and `visible`, the share of the
        object that nothing covers. There is at least one object.
    """
    for attempt in itertools.count():
        rng = np.random.default_rng([config.seed, SPLITS.index(split), index, attempt])
        scene = _new_scene(rng)
        image = _compose(scene, config)
        if scene.objects:
            return _expose(rng, image), _describe(scene)


def _compose(scene: _Scene, config: SceneConfig) -> np.ndarray:
    """Fill the scene with objects and draw it, (H, W, 3) float32."""
    if config.companions and scene.rng.random() < config.companions:
        _place_with_companion(scene, config.companion_gap)
    else:
        _place_pairs(scene, config.cue_gap, config.max_pair_size)
    image = _background(scene)
    _scatter_clutter(scene, image)
    for item in scene.neighbours:
        _add(scene, item)
        _fill_box(scene.front, _xyxy(*item.box))
    _place_companions(scene, image, config.misplaced)
    for item in scene.neighbours:
        paste(image, item.pixels, *item.box[:2])
    for item in scene.objects:
        if item.name in HOMES:
            for occluder in _occluder(scene, item):
                paste(image, *occluder)
    image = cv2.GaussianBlur(image, (0, 0), scene.rng.uniform(*DIFFICULTY["blur"]))
    _paste_front(scene, image, config.cue_gap)
    return image


def _describe(scene: _Scene) -> dict:
    annotations = [
        {"name": o.name, "bbox": list(o.box), "surface": o.surface, "visible": share}
        for o, share in zip(scene.objects, scene.visible().round(3).tolist(), strict=True)
    ]
    return {"surfaces": scene.surfaces, "annotations": annotations}


# ---- Writing ------------------------------------------------------------------------------------


def ensure_generated(root: str) -> str:
    """Write the default data set under `root` unless it is there; returns its folder."""
    return generate(root)


def generate(root: str, config: SceneConfig | None = None, *, workers: int | None = None) -> str:
    """Write the data set to `<root>/context_scenes`, once and all or nothing.

    A set of the same version and parameters is left as it is. Processes that call this at the same
    time wait for one of them to write.

    Args:
        root: folder of the data sets, made when absent.
        config: parameters, default `SceneConfig()`.
        workers: processes to draw with, default one per CPU core; the result does not depend on it.

    Returns:
        The folder of the data set.

    Raises:
        FileExistsError: the folder holds something else, or a part of the set.
    """
    config = config or SceneConfig()
    folder = os.path.join(os.path.expanduser(root), FOLDER)
    with file_lock(folder):
        if os.path.lexists(folder):
            _check_existing(folder, config)
            return folder
        partial = folder + ".partial"  # ours alone while we hold the lock
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write(partial, config, workers or os.cpu_count() or 1)
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_existing(folder: str, config: SceneConfig) -> None:
    """Raise FileExistsError unless the folder holds all of the set that config describes."""
    remedy = f"remove {folder} to have it generated again, or choose another root"
    for split, size in zip(SPLITS, config.sizes, strict=True):
        try:
            with open(os.path.join(folder, "annotations", f"{split}.json")) as f:
                info = json.load(f)["info"]
            images = len(os.listdir(os.path.join(folder, "images", split)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileExistsError(
                f"{folder} is not a complete Context Scenes data set ({error}): {remedy}"
            ) from error
        if info != config.describe():
            raise FileExistsError(
                f"{folder} was generated by another version or with other parameters: {remedy}"
            )
        if images != size:
            raise FileExistsError(
                f"{folder}/images/{split} holds {images} files instead of {size}: {remedy}"
            )


def _write(folder: str, config: SceneConfig, workers: int) -> None:
    """Write all images and the annotation files into a new folder."""
    for split in SPLITS:
        os.makedirs(os.path.join(folder, "images", split))
    os.makedirs(os.path.join(folder, "annotations"))
    tasks = [
        (folder, config, split, i)
        for split, size in zip(SPLITS, config.sizes, strict=True)
        for i in range(size)
    ]
    logger.info("Generating Context Scenes, %d images", len(tasks))
    with _mapper(workers) as run:
        results = list(_with_progress(run(_write_image, tasks), len(tasks)))
    for split in SPLITS:
        coco = _to_coco(
            config, [r for r, task in zip(results, tasks, strict=True) if task[2] == split]
        )
        with open(os.path.join(folder, "annotations", f"{split}.json"), "w") as f:
            json.dump(coco, f)


@contextmanager
def _mapper(workers: int) -> Iterator:
    """An ordered, lazy `map`, over forked processes where that is possible.

    Forking needs no importable __main__, so that it works from any script, from a test and in a
    training process; daemonic processes may not fork, and Windows cannot.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork, and help nothing at this size
    daemonic = multiprocessing.current_process().daemon
    try:
        if workers == 1 or daemonic or not sys.platform.startswith("linux"):
            yield map
        else:
            with multiprocessing.get_context("fork").Pool(workers) as pool:
                yield lambda function, tasks: pool.imap(function, tasks, chunksize=16)
    finally:
        cv2.setNumThreads(threads)


def _with_progress(results: Iterator, total: int) -> Iterator:
    """Show a bar with the remaining time; outside a terminal every 10 s, so not in a short run."""
    quiet = 0.1 if sys.stderr.isatty() else 10
    return iter(tqdm(results, FOLDER, total, unit="image", mininterval=quiet, delay=quiet))


def _write_image(task: tuple[str, SceneConfig, str, int]) -> dict:
    """Draw and save one image; returns its COCO image entry with its `annotations`."""
    folder, config, split, index = task
    image, contents = render_scene(config, split, index)
    # PNG: a lossy format would spread the surroundings into the crops.
    name = f"{index + 1:06d}.png"
    path = os.path.join(folder, "images", split, name)
    if not cv2.imwrite(path, image):
        raise OSError(f"cannot write {path}")
    height, width = image.shape[:2]
    size = {"width": width, "height": height}
    return {"id": index + 1, "file_name": name, **size, **contents}


def _to_coco(config: SceneConfig, images: Sequence[dict]) -> dict:
    """Collect the entries of one split as a COCO dictionary, ids from 1."""
    annotations = []
    for image in images:
        for a in image.pop("annotations"):
            entry = {"id": len(annotations) + 1, "image_id": image["id"], "iscrowd": 0}
            entry["category_id"] = config.classes.index(a.pop("name")) + 1
            annotations.append({**entry, "area": a["bbox"][2] * a["bbox"][3], **a})
    categories = [{"id": i, "name": name} for i, name in enumerate(config.classes, start=1)]
    return {
        "info": config.describe(),
        "images": list(images),
        "annotations": annotations,
        "categories": categories,
    }
