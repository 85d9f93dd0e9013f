"""PASCAL VOC as multi-label data sets: boxes, difficult objects and image-level labels."""

from __future__ import annotations

import logging
import os
import re
import reprlib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .boxes import LONGEST_SIDE, clip_annotations
from .errors import DatasetError, ImageError, is_inside, require_path
from .images import image_size
from .labels import DEFAULT_POLICY, label_records
from .problems import Fault, Problems, counted, find_empty_annotations, first_ones

EMPTY_OBJECT = "object {} of image {} marks nothing (four zeros in <bndbox>)"
_CHECK_PATHS = "Check that the folder holds Annotations/, ImageSets/Main/ and JPEGImages/."
_ENDINGS = (".jpg", ".JPG", ".jpeg", ".JPEG", ".png", ".PNG")
_STATES = ("-1", "0", "1")  # of an image in the list of a class
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


_EMPTY_BOX = (-1.0, -1.0, 0.0, 0.0)  # what four zeros become

logger = logging.getLogger(__name__)


class _Object(NamedTuple):
    category_id: int
    box: tuple[float, ...]  # XYXY in pixels, not yet clipped
    difficult: int


class _Image(NamedTuple):
    height: int  # 0 if the file does not say
    width: int
    objects: tuple[_Object, ...]
    faults: tuple[tuple[str, str], ...]  # what is wrong, and what to do


def load_voc_multilabel(
    dirname: str, split: str, dataset_name: str, *, remedy: str = _CHECK_PATHS
) -> list[dict[str, Any]]:
    """Load one split of a VOC folder as dataset dicts with image-level labels.

    Boxes are XYXY in pixels with 1 subtracted from xmin and ymin, as in Detectron2's
    ``load_voc_instances``, and clipped to the image. Difficult objects stay among the
    annotations with ``difficult`` 1; ``annotations_without_box`` holds those whose box cannot be
    used. Objects with four zeros mark nothing and are no labels: ``empty_annotations``, only where
    there are any, holds their numbers in the file, from 1. ``image_labels`` and ``ignored_labels``
    are those of the default ``LabelPolicy``; ``get_multilabel_dicts`` applies another one. Images
    end in .jpg, .jpeg or .png, in capitals too; ids may have spaces.

    Args:
        dirname: folder with ``Annotations/``, ``ImageSets/Main/`` and ``JPEGImages/``.
        split: name of the list in ``ImageSets/Main/``, such as "trainval".
        dataset_name: name for messages.
        remedy: what to do if a path does not exist, for the error message.

    Raises:
        DatasetError: for absent paths and for annotations that are broken or inconsistent; with all
            that is wrong with them.
    """
    split_file = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    require_path(split_file, dataset_name, remedy)
    for folder in ("Annotations", "JPEGImages"):
        require_path(os.path.join(dirname, folder), dataset_name, remedy, folder=True)
    problems = Problems(dataset_name)
    ids = _image_ids(split_file, os.path.join(dirname, "Annotations"), problems)
    files = frozenset(PathManager.ls(os.path.join(dirname, "JPEGImages")))
    records = [_load_image(dirname, i, files, problems) for i in ids]
    if problems:  # those that mark nothing are told with the others, and stop nothing by themselves
        find_empty_annotations(records, problems, EMPTY_OBJECT)
    problems.raise_any([r for r in records if r["height"]])
    if not records:
        raise DatasetError(
            f"{dataset_name}: '{split_file}' names no image; write one id on each line."
        )
    _warn_of_empty_annotations(records, dataset_name)
    clip_annotations(records, dataset_name)
    return label_records(records, DEFAULT_POLICY)


def _warn_of_empty_annotations(records: Sequence[dict[str, Any]], dataset_name: str) -> None:
    named = [
        f"object {number} of image {record['image_id']}"
        for record in records
        for number in record.get("empty_annotations", ())
    ]
    if named:
        logger.warning(
            f"{dataset_name}: {counted(len(named), 'object')} with a box of four zeros, which "
            f"marks nothing and gives no label, first {first_ones(named)}; draw it again or delete "
            "it."
        )


def _image_ids(split_file: str, annotation_dir: str, problems: Problems) -> list[str]:
    """Image ids, one a line; the -1, 0 or 1 after it in the list of a class is not read."""
    try:
        with PathManager.open(split_file, "r", encoding="utf-8-sig") as f:  # with or without BOM
            rows = {number: line.strip() for number, line in enumerate(f, 1) if line.strip()}
    except UnicodeDecodeError as e:
        raise DatasetError(f"{split_file}: not UTF-8 ({e}). Save it in UTF-8.") from e
    ids: Counter[str] = Counter()
    for number, row in rows.items():
        try:
            ids[_image_id(row, annotation_dir)] += 1
        except Fault as e:
            problems.add(f"{split_file}: line {number} is {reprlib.repr(row)}, {e}", e.remedy)
    for image_id in sorted(i for i, count in ids.items() if count > 1):
        problems.add(f"{split_file}: image {image_id} occurs twice", "keep one line of it")
    return list(ids)


def _image_id(row: str, annotation_dir: str) -> str:
    """The id on a line of a list: "photo 1" is an id where "photo 1.xml" exists."""
    head, *state = row.rsplit(maxsplit=1)
    ending = os.path.splitext(row)[1]
    if not state:
        if not _exists(annotation_dir, row):
            if ending.lower() in (*_ENDINGS, ".xml"):
                raise Fault("the name of a file", f"write the image id, without '{ending}'")
            _require_inside_file(row, annotation_dir)
        return row
    candidates = [row, head] if state[0] in _STATES else [row]
    found = [image_id for image_id in candidates if _exists(annotation_dir, image_id)]
    if len(found) == 2:
        raise Fault(f"which may mean '{row}.xml' or '{head}.xml'", "rename one of them")
    if not found:
        _require_inside_file(candidates[-1], annotation_dir)
    return found[0] if found else head


def _require_inside_file(image_id: str, annotation_dir: str) -> None:
    """Refuse an id without a file; one that leads out of the folder is refused later, as such."""
    if is_inside(annotation_dir, f"{image_id}.xml"):
        raise Fault(
            f"and '{os.path.join(annotation_dir, image_id)}.xml' does not exist",
            "add the xml file, or write one image id on each line",
        )


def _exists(annotation_dir: str, image_id: str) -> bool:
    return PathManager.isfile(os.path.join(annotation_dir, f"{image_id}.xml"))


def _load_image(
    dirname: str, image_id: str, files: frozenset[str], problems: Problems
) -> dict[str, Any]:
    """The dataset dict; of height and width 0 where these cannot be had, which is a problem."""
    image_dir = os.path.join(dirname, "JPEGImages")
    names = [image_id + ending for ending in _ENDINGS]
    name = next((n for n in names if n in files), names[0])
    if not is_inside(image_dir, name):
        problems.add(f"image list: '{name}' leads out of '{image_dir}'", "correct the list")
        return {"image_id": image_id, "height": 0}
    image_file = os.path.join(image_dir, name)
    annotation_dir = PathManager.get_local_path(os.path.join(dirname, "Annotations"))
    xml_file = os.path.join(annotation_dir, f"{image_id}.xml")
    height, width, objects, faults = _parse_or_fault(xml_file)
    if not (faults or (height and width)):
        try:
            height, width = image_size(image_file)
        except ImageError as e:
            faults = ((e.fault, "write its size, or get the file again"),)
    for fault, remedy in faults:
        problems.add(f"image {image_id}.jpg ('{xml_file}'): {fault}", remedy)
    record = {
        "file_name": image_file,
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": [_annotation(o) for o in objects if o.box != _EMPTY_BOX],
    }
    empty = [number for number, o in enumerate(objects, 1) if o.box == _EMPTY_BOX]
    return {**record, "empty_annotations": empty} if empty else record


def _parse_or_fault(xml_file: str) -> _Image:
    try:
        return _parse(xml_file, os.stat(xml_file).st_mtime_ns)
    except (OSError, ET.ParseError, ValueError) as e:
        return _Image(0, 0, (), ((str(e), "correct or restore the file"),))


def _annotation(obj: _Object) -> dict[str, Any]:
    return {
        "bbox": list(obj.box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": obj.category_id,
        "iscrowd": 0,
        "difficult": obj.difficult,
    }


class _NoDoctype(ET.TreeBuilder):
    """Refuses document type declarations, the only place where xml entities are declared."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise ValueError(f"its annotation declares a document type ({name}), which is refused")


@lru_cache(maxsize=1 << 15)
def _parse(xml_file: str, mtime_ns: int) -> _Image:
    """Read one annotation file; ``mtime_ns`` keys the cache."""
    root = _read_xml(xml_file)
    height, width, objects, faults = 0, 0, [], []
    try:
        height, width = (
            _number(root, f"size/{side}", LONGEST_SIDE) for side in ("height", "width")
        )
    except Fault as e:
        faults.append((str(e), e.remedy))
    for element in _children(root, "object"):
        try:
            objects.append(_parse_object(element))
        except Fault as e:
            faults.append((str(e), e.remedy))
    return _Image(height, width, tuple(objects), tuple(faults))


def _read_xml(xml_file: str) -> ET.Element:
    try:
        root = ET.parse(xml_file, parser=ET.XMLParser(target=_NoDoctype())).getroot()
    except LookupError as e:  # <?xml version="1.0" encoding="no such thing"?>
        raise ValueError(
            f"the encoding that its annotation declares is no text encoding: {e}"
        ) from e
    if root.tag != "annotation":  # another file would pass as an image without objects
        raise ValueError(f"its annotation is a <{root.tag}>, not an <annotation>")
    return root


def _number(element: ET.Element, path: str, largest: int) -> int:
    """Whole number from 0 to `largest` in the element at `path`; 0 where it is absent or blank."""
    text = (element.findtext(path) or "").strip() or "0"
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > largest:
        raise Fault(
            f"{path} is {reprlib.repr(text)}, not a whole number up to {largest}",
            "write the size in pixels",
        )
    return int(text)


def _parse_object(element: ET.Element) -> _Object:
    name = (element.findtext("name") or "").strip()
    if name not in CLASS_NAMES:
        raise Fault(
            f"class {reprlib.repr(name)} is not one of the {len(CLASS_NAMES)} VOC classes",
            "correct the name; for classes of your own, write a COCO-format json and register it "
            "with --register-coco",
        )
    return _Object(CLASS_NAMES.index(name), _parse_box(element, name), _difficult(element))


def _children(element: ET.Element, tag: str) -> list[ET.Element]:
    """Children of a tag, which some tools write with a capital."""
    return [child for child in element if child.tag.lower() == tag]


def _difficult(element: ET.Element) -> int:
    """1 for a difficult object; 0 also where the file does not say."""
    texts = {(child.text or "").strip() or "0" for child in _children(element, "difficult")}
    text = texts.pop() if texts else "0"
    if texts or text.lower() not in _FLAGS:
        raise Fault(
            f"difficult is {reprlib.repr(text)}, not 0, 1, false or true, once in each object",
            "correct it",
        )
    return _FLAGS[text.lower()]


def _parse_box(element: ET.Element, name: str) -> Sequence[float]:
    texts = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        xmin, ymin, xmax, ymax = map(float, texts)
    except (TypeError, ValueError):
        raise Fault(
            f"the box of a '{name}' is {reprlib.repr(texts)}, not four numbers",
            "write xmin, ymin, xmax and ymax",
        ) from None
    # VOC counts pixels from 1 and includes the last one: xmin 1, xmax W is the whole width.
    return xmin - 1.0, ymin - 1.0, xmax, ymax
