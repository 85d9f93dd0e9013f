"""COCO-format json files as multi-label data sets.

The records are those of Detectron2's ``load_coco_json``. It is not called, because it keeps every
polygon of the file in memory and drops annotations with a bad polygon, label and all. Leaving the
polygons out while reading takes about a third of its memory on val2014. What export tools write
another way than COCO and what has one meaning only is read as meant, with a line in the log.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from pycocotools import mask as coco_mask

from .boxes import LONGEST_SIDE, clip_annotations
from .errors import DatasetError, ImageError, require_path
from .images import image_size
from .labels import DEFAULT_POLICY, label_records
from .paths import is_file_name, with_paths
from .problems import (
    Problems,
    counted,
    find_bad_class_names,
    find_empty_annotations,
    first_ones,
)
from .registration import register_files, set_metadata

logger = logging.getLogger(__name__)

_CHECK_PATHS = "Check the paths given to register_coco_multilabel."
_UNUSED = ("segmentation", "keypoints", "area", "coco_url", "flickr_url", "date_captured")
_NO_SIZE = type(None)
_FIELDS = {
    "images": {
        "id": (int, str),
        "file_name": (str,),
        "height": (int, float, _NO_SIZE),
        "width": (int, float, _NO_SIZE),
    },
    "annotations": {
        "id": (int, str),
        "image_id": (int, str, float),
        "category_id": (int, str, float),
        "bbox": (list,),
    },
    "categories": {"id": (int, str, float), "name": (str,)},
}
_ID_TYPES = (int, str, float)
_EMPTY_BOX = [0, 0, 0, 0]
_MARKS_NOTHING = "annotation marks nothing", "annotations mark nothing"
_COMPRESSED = re.compile("(?:[P-o]*[0-O])+")  # whole numbers of COCO's run lengths: bit 5 goes on
_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "a dict",
    _NO_SIZE: "null",
}


def register_coco_multilabel(
    name: str, json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Register a json file in COCO's instances format as a multi-label data set.

    Nothing is read before ``DatasetCatalog.get(name)``, which also sets ``thing_classes``.
    Registering the same data set again is harmless.

    Raises:
        DatasetError: if ``name`` belongs to another data set, or is a path.
    """
    register_files(name, load_coco_multilabel, json_file=json_file, image_root=image_root)


def load_coco_multilabel(
    json_file: str, image_root: str, dataset_name: str, *, remedy: str = _CHECK_PATHS
) -> list[dict[str, Any]]:
    """Load a COCO-format json as dataset dicts with image-level labels.

    Images come in the order of their ids, without segmentation and keypoints; boxes are XYXY in
    pixels, clipped to the image, and those of the polygons where there is no bbox.
    ``annotations_without_box`` holds the annotations whose box cannot be used;
    ``empty_annotations``, only where there are any, the ids of those that mark nothing (bbox
    [0, 0, 0, 0] or an empty segmentation). ``image_labels`` and ``ignored_labels`` are sorted
    contiguous ids, from all other annotations, under the default ``LabelPolicy``;
    ``get_multilabel_dicts`` applies another one.

    Args:
        json_file: path of the json file.
        image_root: folder to which the file names in it are relative.
        dataset_name: name whose metadata gets the classes, the id mapping and the paths.
        remedy: what to do if a path does not exist, for the error message.

    Raises:
        DatasetError: for absent paths and for files that are broken or inconsistent; with all that
            is wrong with one.
    """
    require_path(json_file, dataset_name, remedy)
    require_path(image_root, dataset_name, remedy, folder=True)
    content = _read_json(json_file)
    problems = Problems(json_file)
    _check(content, problems)
    _drop_repeated_categories(content, problems)
    content["images"] = with_paths(content["images"], os.fspath(image_root), problems)
    _read_sizes(content["images"], problems)
    if problems:  # those that mark nothing are told with the others, and stop nothing by themselves
        find_empty_annotations(_empty_annotations(content["annotations"]), problems)
    problems.raise_any(content["images"])
    categories = sorted(content["categories"], key=lambda c: c["id"])
    id_map = {category["id"]: i for i, category in enumerate(categories)}
    set_metadata(
        dataset_name,
        [c["name"] for c in categories],
        json_file,
        json_file=json_file,
        image_root=image_root,
        thing_dataset_id_to_contiguous_id=id_map,
    )
    records = _records(content, id_map, json_file)
    clip_annotations(records, dataset_name)
    return label_records(records, DEFAULT_POLICY)


def _records(content: dict, id_map: dict[int, int], json_file: str) -> list[dict[str, Any]]:
    """Dataset dicts of a checked json, in the order of the image ids."""
    annotations = defaultdict(list)
    empty = defaultdict(list)
    content["annotations"].reverse()
    while content["annotations"]:  # taken out one by one, so that the two forms never coexist
        annotation = content["annotations"].pop()
        if annotation["bbox"] == _EMPTY_BOX:
            empty[annotation["image_id"]].append(annotation["id"])
        else:
            annotations[annotation["image_id"]].append(_annotation(annotation, id_map))
    images = sorted(content["images"], key=lambda image: image["id"])
    _warn_of_empty_annotations(images, empty, json_file)
    records = [
        {
            "file_name": image["file_name"],
            "image_id": image["id"],
            "height": int(image["height"]),
            "width": int(image["width"]),
            "annotations": annotations[image["id"]],
        }
        for image in images
    ]
    for record in records:
        if record["image_id"] in empty:
            record["empty_annotations"] = empty[record["image_id"]]
    return records


def _empty_annotations(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A record with `empty_annotations` for each annotation that marks nothing."""
    return [
        {"image_id": a["image_id"], "empty_annotations": [a["id"]]}
        for a in annotations
        if a["bbox"] == _EMPTY_BOX
    ]


def _warn_of_empty_annotations(images: list[dict], empty: dict[Any, list], json_file: str) -> None:
    """One line for the annotations that mark nothing, given as their ids by image id."""
    if empty:
        named = [
            f"annotation {annotation!r} of image {image['id']!r} ({image['file_name']!r})"
            for image in images
            for annotation in empty.get(image["id"], ())
        ]
        logger.warning(
            f"{json_file}: {counted(len(named), *_MARKS_NOTHING)} (bbox [0, 0, 0, 0] or an empty "
            f"segmentation) and so gives no label, first {first_ones(named)}; draw it again or "
            "delete it."
        )


def _read_sizes(images: list[dict], problems: Problems) -> None:
    """Fill in, from the image files, the sizes that the json does not give."""
    unsized = [image for image in images if image.get("height") is None]
    for image in unsized:
        try:
            image["height"], image["width"] = image_size(image["file_name"])
        except ImageError as e:
            problems.add(
                f"image {image['id']!r} has no width and height, and they are not to be had from "
                f"its file: {e.fault}",
                "write them, or get the file again",
            )
    if unsized:
        logger.warning(
            f"{problems.source}: {counted(len(unsized), 'image')} without width and height; these "
            "were read from the image files."
        )


def _annotation(annotation: dict[str, Any], id_map: dict[int, int]) -> dict[str, Any]:
    kept = {
        "bbox": _corners(annotation["bbox"]),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": id_map[annotation["category_id"]],
        "iscrowd": int(bool(annotation.get("iscrowd"))),
    }
    if "difficult" in annotation:
        kept["difficult"] = int(bool(annotation["difficult"]))
    return kept


def _corners(box: list) -> list[float]:
    """XYXY of [x, y, width, height]; nan if a number is too large for a float."""
    try:
        x, y, width, height = map(float, box)
    except OverflowError:  # an integer of more than 308 digits: as unusable as the float 1e400, inf
        return [math.nan] * 4
    return [x, y, x + width, y + height]


class _Reader:
    """Hook of the json parser: drops what no multi-label model reads, most of a COCO file.

    A segmentation goes too, after its box has been put where an annotation lacks one.
    """

    def __init__(self) -> None:
        self.boxes_of_shapes = 0

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        if "segmentation" in entry and entry.get("bbox") in (None, [], _EMPTY_BOX):
            self._add_box(entry)
        for key in _UNUSED:
            entry.pop(key, None)
        return entry

    def _add_box(self, entry: dict[str, Any]) -> None:
        shape = entry["segmentation"]
        if isinstance(shape, dict):
            box = _box_of_mask(shape)
        elif not isinstance(shape, list):
            return
        elif not any(shape):
            box = list(_EMPTY_BOX)
        else:
            box = _box_of(shape) if all(map(_is_polygon, shape)) else None
        if box is not None:
            entry["bbox"] = box
            self.boxes_of_shapes += box != _EMPTY_BOX


def _is_polygon(points: Any) -> bool:
    """Whether a json value is [x0, y0, x1, y1, x2, y2, ...]."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(type(v) in (int, float) and abs(v) < 1e300 for v in points)
    )


def _box_of(polygons: list[list[float]]) -> list[float]:
    """[x, y, width, height] around polygons."""
    x = [v for points in polygons for v in points[::2]]
    y = [v for points in polygons for v in points[1::2]]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def _box_of_mask(mask: dict[str, Any]) -> list[float] | None:
    """[x, y, width, height] around a run-length encoded mask; None where it is not a whole one."""
    size, counts = mask.get("size"), mask.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_side, size))):
        return None
    height, width = size
    if height * width > LONGEST_SIDE:
        return None
    if isinstance(counts, list):
        if not all(type(n) is int and n >= 0 for n in counts) or sum(counts) != height * width:
            return None
        mask = coco_mask.frPyObjects(mask, height, width)
    elif not (isinstance(counts, str) and _COMPRESSED.fullmatch(counts)):
        return None
    x, y, *sides = coco_mask.toBbox(mask).tolist()
    inside = x >= 0 and y >= 0 and x + sides[0] <= width and y + sides[1] <= height
    return [x, y, *sides] if inside else None


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LONGEST_SIDE


def _read_json(json_file: str) -> Any:
    reader = _Reader()
    try:
        with PathManager.open(json_file, "r", encoding="utf-8-sig") as f:  # with or without BOM
            content = json.load(f, object_hook=reader)
    except UnicodeDecodeError as e:
        raise DatasetError(f"{json_file}: not UTF-8 ({e}). Save it in UTF-8.") from e
    except RecursionError as e:
        raise DatasetError(
            f"{json_file}: lists or dicts nested too deeply ({e}). Write it without them."
        ) from e
    except ValueError as e:  # JSONDecodeError, or an integer of more digits than Python takes
        raise DatasetError(
            f"{json_file}: not a complete json file ({e}). Get or write it again."
        ) from e
    if reader.boxes_of_shapes:
        logger.warning(
            f"{json_file}: {counted(reader.boxes_of_shapes, 'annotation')} without bbox; the boxes "
            "of polygons and masks are used."
        )
    return content


def _check(content: Any, problems: Problems) -> None:
    """Add what is wrong with a json, and take the entries out that cannot be checked further."""
    if not isinstance(content, dict):
        raise DatasetError(
            f"{problems.source}: a json {type(content).__name__}, not a COCO-format dict; export "
            "it as COCO."
        )
    for section in _FIELDS:
        _check_list(content, section, problems)
    problems.raise_any()
    ids = {s: _ids(content[s]) for s in ("images", "categories")}  # of entries with faults, too
    for section, fields in _FIELDS.items():
        content[section] = _good_entries(content[section], section, fields, problems)
    content["images"] = _good_images(content["images"], problems)
    content["categories"] = _good_categories(content["categories"], problems)
    _check_annotations(content, ids, problems)


def _check_list(content: dict, section: str, problems: Problems) -> None:
    entries = content.get(section)
    if not isinstance(entries, list):
        problems.add(
            f"the list '{section}' is missing",
            "COCO's instances format has 'images', 'annotations' and 'categories'; test files "
            "without annotations do not serve",
        )
    elif not entries and section != "annotations":
        problems.add(f"'{section}' is empty", "there is nothing to load")


def _ids(entries: list) -> list:
    return [e["id"] for e in entries if isinstance(e, dict) and type(e.get("id")) in _ID_TYPES]


def _good_entries(
    entries: list, section: str, fields: dict[str, Any], problems: Problems
) -> list[dict]:
    """The entries with all fields, of the right types, and each id once."""
    good, seen = [], set()
    for position, entry in enumerate(entries):
        wrong = _wrong_fields(entry, fields)
        if wrong:
            shapes = ", or a whole polygon or mask" if "bbox" in wrong else ""
            problems.add(
                f"{section}[{position}] lacks a valid {', '.join(wrong)}"
                f"{_description(entry, wrong[0], fields)}",
                f"correct {' and '.join(wrong)} in '{section}'{shapes}",
            )
            continue
        if entry["id"] in seen:
            problems.add(
                f"id {entry['id']!r} occurs twice in '{section}'",
                f"make the ids in '{section}' unique",
            )
        seen.add(entry["id"])
        good.append(entry)
    return good


def _description(entry: Any, key: str, fields: dict[str, Any]) -> str:
    """Of an entry with a wrong field: its id, and what stands there and should."""
    if not isinstance(entry, dict):
        return f" (it is {_kind(entry)}, not a dict)"
    expected = " or ".join(_KINDS[kind] for kind in fields[key] if kind not in (float, _NO_SIZE))
    value = f"{reprlib.repr(entry[key])}, {_kind(entry[key])}" if key in entry else "absent"
    return f" (its id is {reprlib.repr(entry.get('id'))}; {key} is {value}, not {expected})"


def _kind(value: Any) -> str:
    return _KINDS[type(value)]


def _wrong_fields(entry: Any, fields: dict[str, Any]) -> list[str]:
    if not isinstance(entry, dict):
        return list(fields)
    # not isinstance: true and false are no numbers here
    return [key for key, types in fields.items() if type(entry.get(key)) not in types]


def _good_images(images: list[dict], problems: Problems) -> list[dict]:
    good = []
    for image in images:
        sides = image.get("height"), image.get("width")
        named = f"image {image['id']!r} ({image['file_name']!r}) has"
        if None in sides:  # one alone does not serve: both are read from the file
            image["height"] = image["width"] = None
        elif not all(1 <= v <= LONGEST_SIDE and float(v).is_integer() for v in sides):
            problems.add(f"{named} height and width {reprlib.repr(sides)}", "write its size in px")
        if is_file_name(image["file_name"]):
            good.append(image)
        else:
            problems.add(f"{named} no valid file_name", "write the name of its file")
    ids = {type(image["id"]): image["id"] for image in images}
    if len(ids) > 1:  # they are sorted
        problems.add(
            f"image ids {reprlib.repr(list(ids.values()))} are of two types",
            "write all of them as numbers or all as texts",
        )
    return good


def _good_categories(categories: list[dict], problems: Problems) -> list[dict]:
    """Those with whole numbers for ids, which they become."""
    find_bad_class_names([category["name"] for category in categories], problems)
    good = []
    for category in categories:
        number = _converted(category["id"], int)
        if number is None:
            problems.add(
                f"category {category['name']!r} has the id {reprlib.repr(category['id'])}, "
                f"{_kind(category['id'])}",
                "write a whole number, here and as 'category_id'",
            )
        else:
            good.append({**category, "id": number})
    if len({category["id"] for category in good}) < len(good):
        problems.add("an id occurs twice in 'categories'", "make them unique")
    return good


def _converted(value: Any, kind: type) -> Any:
    """An id as another type, int or str; None where that would lose something."""
    if type(value) is kind:
        return value
    if type(value) is float:
        value = int(value) if value.is_integer() and abs(value) < 2**53 else None
    elif type(value) is str:  # 19 digits: the largest of 64 bits
        value = int(value) if re.fullmatch("0|-?[1-9][0-9]{0,18}", value) else None
    return value if value is None or kind is int else str(value)


def _drop_repeated_categories(content: dict[str, list[dict]], problems: Problems) -> None:
    """Of categories with one name, leave out those without annotations."""
    by_name = defaultdict(list)
    for category in content["categories"]:
        by_name[category["name"]].append(category["id"])
    repeated = {name: ids for name, ids in by_name.items() if len(ids) > 1}
    used = {a["category_id"] for a in content["annotations"]} if repeated else set()
    for name, ids in repeated.items():
        if sum(i in used for i in ids) != 1:
            problems.add(
                f"{name!r} is the name of the categories {_listed(ids)}",
                "rename one, or give their annotations one category_id and delete the other",
            )
            continue
        empty = [i for i in ids if i not in used]
        content["categories"] = [c for c in content["categories"] if c["id"] not in empty]
        logger.warning(
            f"{problems.source}: category {_listed(empty)} ({name!r}) has the name of another one "
            "and no annotations; it is left out."
        )


def _listed(ids: list) -> str:
    return " and ".join(map(repr, ids))


def _check_annotations(content: dict[str, list], ids: dict[str, list], problems: Problems) -> None:
    """Add what is wrong with annotations, whose ids become those of images and categories."""
    tables = {
        "image_id": ("images", next((type(i["id"]) for i in content["images"]), int)),
        "category_id": ("categories", int),
    }
    known = {
        "image_id": set(ids["images"]),
        "category_id": {_same_type(i, int) for i in ids["categories"]},
    }
    for annotation in content["annotations"]:
        for key, (section, kind) in tables.items():
            if type(annotation[key]) is not kind:
                annotation[key] = _same_type(annotation[key], kind)
            if annotation[key] not in known[key]:
                fault, remedy = _unknown(annotation[key], key, section, kind)
                problems.add(f"annotation {annotation['id']!r}: {fault}", remedy)
        for fault, remedy in _faults(annotation):
            problems.add(f"annotation {annotation['id']!r}: {fault}", remedy)


def _faults(annotation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with an annotation by itself, and what to do."""
    if not _is_box(annotation["bbox"]):
        box = reprlib.repr(annotation["bbox"])
        yield f"bbox {box} is not [x, y, width, height] in pixels", "correct the boxes"
    if not (_is_flag(annotation.get("iscrowd")) and _is_flag(annotation.get("difficult"))):
        yield "'iscrowd' and 'difficult' are 0 or 1", "correct these"
    if annotation.get("ignore", 0):
        yield "Detectron2 does not take 'ignore'", "use 'iscrowd' or 'difficult' instead"


def _same_type(value: Any, kind: type) -> Any:
    converted = _converted(value, kind)
    return value if converted is None else converted


def _unknown(value: Any, key: str, section: str, kind: type) -> tuple[str, str]:
    """What is wrong with an id that is not in its table, whose ids are of type ``kind``; remedy."""
    if type(value) is not kind:
        fault = (
            f"{key} is {reprlib.repr(value)}, {_kind(value)}, and the ids in '{section}' are each "
            f"{_KINDS[kind]}"
        )
        return fault, f"write the same id in '{section}' and as {key}"
    fault = f"{key} {reprlib.repr(value)} is not in '{section}'"
    return fault, f"add it to '{section}' or delete the annotation"


def _is_box(box: list) -> bool:
    return len(box) == 4 and all(type(v) in (int, float) for v in box)


def _is_flag(value: Any) -> bool:
    return value is None or value in (0, 1)
