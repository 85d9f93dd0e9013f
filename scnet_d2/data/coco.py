"""COCO-format json files as multi-label data sets.

The records are those of Detectron2's ``load_coco_json``. It is not called, because it keeps every
polygon of the file in memory and drops annotations with a bad polygon, label and all. Leaving the
polygons out while reading takes about a third of its memory on val2014.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import reprlib
from collections import Counter, defaultdict
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .boxes import LONGEST_SIDE, clip_annotations
from .errors import DatasetError, check_class_names, require_inside, require_path
from .labels import DEFAULT_POLICY, label_records

_CHECK_PATHS = "Check the paths given to register_coco_multilabel."
_UNUSED = ("segmentation", "keypoints", "area", "coco_url", "flickr_url", "date_captured")
_FIELDS = {
    "images": {
        "id": (int, str),
        "file_name": (str,),
        "height": (int, float),
        "width": (int, float),
    },
    "annotations": {
        "id": (int, str),
        "image_id": (int, str),
        "category_id": (int,),
        "bbox": (list,),
    },
    "categories": {"id": (int,), "name": (str,)},
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
    if name in (".", "..") or "/" in name or os.sep in name:
        raise DatasetError(f"'{name}' is a path; name the data set without '/': folders bear it")
    paths = {
        "json_file": os.path.expanduser(json_file),
        "image_root": os.path.expanduser(image_root),
    }
    if name in DatasetCatalog:
        _require_same(name, paths)
        return
    MetadataCatalog.pop(name, None)  # left behind by DatasetCatalog.remove(name)
    MetadataCatalog.get(name).set(**paths, evaluator_type="multilabel")
    DatasetCatalog.register(name, lambda: load_coco_multilabel(**paths, dataset_name=name))


def add_register_coco_argument(parser: argparse.ArgumentParser) -> None:
    """Add --register-coco NAME JSON IMAGE_ROOT (repeatable); see `register_coco_arguments`."""
    parser.add_argument(
        "--register-coco",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_ROOT"),
        help="register a COCO-format json as a multi-label data set (repeatable)",
    )


def register_coco_arguments(args: argparse.Namespace) -> list[str]:
    """Register what --register-coco named, in this process; returns the names."""
    for name, json_file, image_root in args.register_coco:
        register_coco_multilabel(name, json_file, image_root)
    return [name for name, *_ in args.register_coco]


def _require_same(name: str, paths: dict[str, str]) -> None:
    known = vars(MetadataCatalog.get(name))
    same = all(known.get(key) == path for key, path in paths.items())
    if not (same and known.get("evaluator_type") == "multilabel"):
        raise DatasetError(
            f"data set '{name}' is already registered with json_file "
            f"'{known.get('json_file')}' and image_root '{known.get('image_root')}'; "
            f"register '{paths['json_file']}' under another name."
        )


def load_coco_multilabel(
    json_file: str, image_root: str, dataset_name: str, *, remedy: str = _CHECK_PATHS
) -> list[dict[str, Any]]:
    """Load a COCO-format json as dataset dicts with image-level labels.

    Images come in the order of their ids, without segmentation and keypoints; boxes are XYXY in
    pixels, clipped to the image. ``annotations_without_box`` holds the annotations whose box cannot
    be used. ``image_labels`` and ``ignored_labels`` are sorted contiguous ids, from all
    annotations, under the default ``LabelPolicy``; ``get_multilabel_dicts`` applies another one.

    Args:
        json_file: path of the json file.
        image_root: folder to which the file names in it are relative.
        dataset_name: name whose metadata gets the classes, the id mapping and the paths.
        remedy: what to do if a path does not exist, for the error message.

    Raises:
        DatasetError: for absent paths and for files that are broken or inconsistent.
    """
    require_path(json_file, dataset_name, remedy)
    require_path(image_root, dataset_name, remedy, folder=True)
    content = _read_json(json_file)
    _check(content, json_file)
    categories = sorted(content["categories"], key=lambda c: c["id"])
    id_map = {category["id"]: i for i, category in enumerate(categories)}
    _set_metadata(
        dataset_name,
        [c["name"] for c in categories],
        json_file=json_file,
        image_root=image_root,
        thing_dataset_id_to_contiguous_id=id_map,
    )
    records = _records(content, os.fspath(image_root), id_map, json_file)
    clip_annotations(records, dataset_name)
    return label_records(records, DEFAULT_POLICY)


def _records(
    content: dict, image_root: str, id_map: dict[int, int], json_file: str
) -> list[dict[str, Any]]:
    """Dataset dicts of a checked json, in the order of the image ids."""
    annotations = defaultdict(list)
    content["annotations"].reverse()
    while content["annotations"]:  # taken out one by one, so that the two forms never coexist
        annotation = content["annotations"].pop()
        annotations[annotation["image_id"]].append(_annotation(annotation, id_map))
    return [
        {
            "file_name": require_inside(image_root, image["file_name"], json_file),
            "image_id": image["id"],
            "height": int(image["height"]),
            "width": int(image["width"]),
            "annotations": annotations[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


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


def _set_metadata(name: str, classes: list[str], **metadata: Any) -> None:
    meta = MetadataCatalog.get(name)
    known = meta.get("thing_classes", classes)
    if known != classes:
        raise DatasetError(
            f"{metadata['json_file']}: its {len(classes)} categories are not the {len(known)} of "
            f"data set '{name}'. Register it under another name with register_coco_multilabel."
        )
    # Metadata refuses a second value for a key; the root may have changed since registration.
    vars(meta).update(thing_classes=classes, **metadata)


def _without_unused(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop what is most of a COCO file and what no multi-label model reads."""
    for key in _UNUSED:
        entry.pop(key, None)
    return entry


def _read_json(json_file: str) -> Any:
    try:
        with PathManager.open(json_file, "r", encoding="utf-8-sig") as f:  # with or without BOM
            return json.load(f, object_hook=_without_unused)
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


def _check(content: Any, json_file: str) -> None:
    if not isinstance(content, dict):
        raise DatasetError(f"{json_file}: a json {type(content).__name__}, not a COCO-format dict.")
    for section, fields in _FIELDS.items():
        _check_section(content, section, fields, json_file)
    _check_images(content["images"], json_file)
    _check_categories(content["categories"], json_file)
    _check_annotations(content, json_file)


def _check_section(content: dict, section: str, fields: dict[str, Any], json_file: str) -> None:
    entries = content.get(section)
    if not isinstance(entries, list):
        raise DatasetError(
            f"{json_file}: the list '{section}' is missing. COCO's instances format has "
            "'images', 'annotations' and 'categories'; test files without annotations do not serve."
        )
    if not entries and section != "annotations":
        raise DatasetError(f"{json_file}: '{section}' is empty; there is nothing to load.")
    seen = set()
    for position, entry in enumerate(entries):
        wrong = _wrong_fields(entry, fields)
        if wrong:
            raise DatasetError(
                f"{json_file}: {section}[{position}] lacks a valid {', '.join(wrong)}; correct it."
            )
        if entry["id"] in seen:
            raise DatasetError(
                f"{json_file}: id {entry['id']!r} occurs twice in '{section}'; make the ids unique."
            )
        seen.add(entry["id"])


def _wrong_fields(entry: Any, fields: dict[str, Any]) -> list[str]:
    if not isinstance(entry, dict):
        return list(fields)
    # not isinstance: true and false are no numbers here
    return [key for key, types in fields.items() if type(entry.get(key)) not in types]


def _check_images(images: list[dict], json_file: str) -> None:
    for image in images:
        fault = None
        sides = image["height"], image["width"]
        if not _is_file_name(image["file_name"]):
            fault = "no valid file_name; write the name of its file"
        elif not all(1 <= v <= LONGEST_SIDE and float(v).is_integer() for v in sides):
            fault = f"height and width {reprlib.repr(sides)}; write its size in pixels"
        if fault:
            raise DatasetError(
                f"{json_file}: image {image['id']!r} ({image['file_name']!r}) has {fault}."
            )
    ids = {type(image["id"]): image["id"] for image in images}
    if len(ids) > 1:  # they are sorted
        raise DatasetError(
            f"{json_file}: image ids {reprlib.repr(list(ids.values()))} are of two types; write "
            "all of them as numbers or all as texts."
        )


def _check_categories(categories: list[dict], json_file: str) -> None:
    names = [category["name"] for category in categories]
    check_class_names(names, json_file)
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DatasetError(f"{json_file}: category names {repeated} occur twice; rename them.")


def _is_file_name(text: str) -> bool:
    """Whether a text can name a file (JSON allows half characters).

    A name that the file system has in another encoding comes with surrogate escapes.
    """
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return bool(text.strip()) and "\0" not in text


def _check_annotations(content: dict[str, list[dict]], json_file: str) -> None:
    image_ids = {image["id"] for image in content["images"]}
    category_ids = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        fault = None
        if annotation["image_id"] not in image_ids:
            fault = f"image_id {annotation['image_id']!r} is not in 'images'; add it or drop this"
        elif annotation["category_id"] not in category_ids:
            fault = f"category_id {annotation['category_id']} is not in 'categories'; add it there"
        elif not _is_box(annotation["bbox"]):
            box = reprlib.repr(annotation["bbox"])
            fault = f"bbox {box} is not [x, y, width, height] in pixels; correct it"
        elif not (_is_flag(annotation.get("iscrowd")) and _is_flag(annotation.get("difficult"))):
            fault = "'iscrowd' and 'difficult' are 0 or 1; correct it"
        elif annotation.get("ignore", 0):
            fault = "Detectron2 does not take 'ignore'; use 'iscrowd' or 'difficult' instead"
        if fault:
            raise DatasetError(f"{json_file}: annotation {annotation['id']!r}: {fault}.")


def _is_box(box: list) -> bool:
    return len(box) == 4 and all(type(v) in (int, float) for v in box)


def _is_flag(value: Any) -> bool:
    return value is None or value in (0, 1)
