"""Annotation files for fuzzing the loaders: valid and broken seeds, mutations, and what must hold.

Used by tests/fuzzing/fuzz_loaders.py and, without atheris, by tests/fuzzing/test_loader_fuzzing.py.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import os
import random
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scnet_d2.data import DatasetError
from scnet_d2.data.coco import load_coco_multilabel
from scnet_d2.data.voc import load_voc_multilabel

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

COCO_TEXT = """{"info": {"year": 2017},
"images": [{"id": 9, "file_name": "9.png", "height": 40, "width": 60},
 {"id": 4, "file_name": "sub/4.png", "height": 40.0, "width": 60}],
"annotations": [{"id": 1, "image_id": 9, "category_id": 20, "bbox": [5, 6, 10.5, 12], "area": 126},
 {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 8, 8], "iscrowd": 1, "segmentation": []},
 {"id": 3, "image_id": 4, "category_id": 20, "bbox": [1, 1, 9, 9], "iscrowd": 0, "difficult": 1}],
"categories": [{"id": 20, "name": "cat"}, {"id": 3, "name": "cup"}]}"""
COCO_FAULTS = (  # (text above, what stands there instead)
    ("[5, 6, 10.5, 12]", "[NaN, 6, 10.5, 12]"),
    ("[5, 6, 10.5, 12]", "[5, 6, Infinity, 12]"),
    ("[5, 6, 10.5, 12]", "[5, 6, 1e999, 12]"),
    ("[5, 6, 10.5, 12]", "[5, 6, 0, 12]"),
    ("[5, 6, 10.5, 12]", "[5, 6, -10, -12]"),
    ("[5, 6, 10.5, 12]", "[500, 600, 10, 12]"),
    ("[5, 6, 10.5, 12]", "[true, false, true, true]"),
    ("[5, 6, 10.5, 12]", f"[5.5, 6, {'9' * 400}, 12]"),
    ("[5, 6, 10.5, 12]", "[" * 500 + "]" * 500),
    ('"bbox": [5, 6, 10.5, 12]', '"segmentation": [[5, 6, 15, 6, 5, 18]]'),
    ('"bbox": [0, 0, 8, 8]', '"x": 1'),
    ("[5, 6, 10.5, 12]", "[0, 0, 0, 0]"),
    ('"image_id": 4', '"image_id": "4"'),
    ('"category_id": 3', '"category_id": 3.0'),
    ('{"id": 3, "name": "cup"}', '{"id": "3", "name": "cup"}, {"id": 0, "name": "cup"}'),
    ('"sub/4.png"', '"sub\\\\4.png"'),
    ('"id": 4', '"id": 9'),
    ('"id": 4', '"id": "four"'),
    ('"id": 4', '"id": true'),
    ('"id": 2', '"id": 1'),
    ('"image_id": 4', '"image_id": 5'),
    ('"category_id": 3', '"category_id": 8'),
    ('"iscrowd": 1', '"iscrowd": "0"'),
    ('"iscrowd": 1', '"ignore": 1'),
    ('"width": 60}]', '"width": -60}]'),
    ('"width": 60}]', f'"width": {"9" * 400}}}]'),
    ('"sub/4.png"', '"../4.png"'),
    ('"sub/4.png"', "null"),
    ('"cup"', '"cat"'),
    ('"cup"', '"\\ud800"'),
    ('{"year": 2017}', "[" * 3000 + "]" * 3000),
)
VOC_TEXT = """<annotation><folder>VOC2007</folder><filename>a.jpg</filename>
<size><width>60</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
<object><name>person</name><difficult>1</difficult>
<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>
<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part></object></annotation>"""
VOC_FAULTS = (
    ("<xmax>30</xmax>", "<xmax>nan</xmax>"),
    ("<xmax>30</xmax>", "<xmax>1e999</xmax>"),
    ("<xmax>30</xmax>", "<xmax>0</xmax>"),
    ("<xmax>30</xmax>", "<xmax>300</xmax>"),
    ("<xmax>30</xmax>", "<xmax>wide</xmax>"),
    ("<xmax>30</xmax>", ""),
    ("<width>60</width>", "<width>0</width>"),
    ("<width>60</width>", "<width>-1</width>"),
    ("<width>60</width>", f"<width>{'9' * 400}</width>"),
    ("<size>", "<sizes>"),
    ("<name>dog</name>", "<name>cows</name>"),
    ("<name>dog</name>", ""),
    ("<difficult>1</difficult>", "<difficult>true</difficult>"),
    ("<difficult>1</difficult>", "<difficult>2</difficult>"),
    ("<difficult>1</difficult>", "<Difficult>True</Difficult>"),
    ("<folder>", "<folder>&undeclared;"),
    ("<annotation>", "<html>"),
    ("<annotation>", "<?xml version='1.0' encoding='klingon'?><annotation>"),
    ("<annotation>", "<!DOCTYPE a [<!ENTITY b 'bb'><!ENTITY c '&b;&b;'>]><annotation>&c;"),
    ("<annotation>", "<!DOCTYPE a SYSTEM 'file:///etc/hostname'><annotation>"),
    ("<part>", "<part>" * 2000),
)
LISTS = ("a\nb\n", "a\r\nb", "\n\na\n \nb\n", "a  1\nb -1\n", "a\na\n", "a b\n", "# x\na\n", "")

ODD_NUMBERS = (0, -1, 0.5, 2**31, 10**400, 1e308, math.nan, math.inf)
ODD_VALUES = (None, True, False, *ODD_NUMBERS, "", "0", "\ud800", "a\0b", "../a", [], {}, [[]])
KEYS = ("id", "image_id", "category_id", "bbox", "iscrowd", "difficult", "ignore", "width", "name")
ODD_TEXTS = ("", " ", "0", "1", "-1", "0.5", "nan", "-inf", "1e999", "9" * 400, "dog", "cow\n", "x")
TAGS = ("annotation", "size", "width", "object", "name", "bndbox", "xmin", "ymax", "difficult", "x")
ENCODINGS = ("utf-8", "utf-16", "iso-8859-1", "us-ascii")

COMMON_TOKENS = (
    b"\0",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\xe4",
    b"\r",
    b" ",
    b"-1",
    b"9",
)
JSON_TOKENS = (
    *COMMON_TOKENS,
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"null", b"true", b"-"),
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b'"\\ud800"', b"[]", b"{}"),
    *(b"[" * 2000, b'{"a":' * 2000),
    *(f'"{key}":'.encode() for key in KEYS),
)
XML_TOKENS = (
    *COMMON_TOKENS,
    *(b"nan", b"inf", b"1e999", b"1_0", b"9" * 400, b"9" * 5000, b"<", b">", b"&", b"/", b"'"),
    *(
        b"<!DOCTYPE a>",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
        b"&b;",
        b"&#0;",
        b"&lt;",
        b"<!--",
        b"-->",
    ),
    *(b"<![CDATA[", b"]]>", b"<?xml version='1.0'?>", b" xmlns='x'", b"<x>" * 2000),
    *(
        f"<?xml version='1.0' encoding='{name}'?>".encode()
        for name in ("utf-8", "utf-16", "latin-1", "klingon", "hex", "idna", "undefined", "utf-7")
    ),
    *(f"<{tag}>".encode() for tag in TAGS),
    *(f"</{tag}>".encode() for tag in TAGS),
)
LIST_TOKENS = (
    *COMMON_TOKENS,
    *(b"\n", b"a", b"b", b"0", b"1", b"#", b"../", b"/", b"a\n", b"a" * 5000),
    *("\u2028".encode(), "\x85".encode(), "é".encode()),
)


class CocoJson:
    """The json file of `load_coco_multilabel`."""

    suffix = ".json"
    valid = COCO_TEXT.encode()

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def seeds(self) -> Iterator[bytes]:
        """A valid file, the same in other encodings, and one for each of `COCO_FAULTS`."""
        yield from _seeds(COCO_TEXT, COCO_FAULTS)

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        """One change of a json value, or of the text."""
        return mutate_json(data, rng)

    def load(self, data: bytes) -> bool:
        """Load a file with this content; see `_loads`."""
        json_file = self.folder / "a.json"
        json_file.write_bytes(data)
        MetadataCatalog.pop("fuzzed", None)
        records = _loads(load_coco_multilabel, str(json_file), str(self.folder), "fuzzed")
        if records is not None:
            check_records(records, len(MetadataCatalog.get("fuzzed").thing_classes))
            _check_coco_labels(records, json.loads(data.decode("utf-8-sig")))
        return records is not None


class VocXml:
    """An annotation file of `load_voc_multilabel`."""

    suffix = ".xml"
    valid = VOC_TEXT.encode()

    def __init__(self, folder: str | os.PathLike):
        self.folder = _voc_folder(folder, "a\n")
        self._times = itertools.count(1)

    def seeds(self) -> Iterator[bytes]:
        """A valid file, the same in other encodings, and one for each of `VOC_FAULTS`."""
        yield from _seeds(VOC_TEXT, VOC_FAULTS)

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        """One change of an element, or of the text."""
        return mutate_xml(data, rng)

    def load(self, data: bytes) -> bool:
        """Load a file with this content; see `_loads`."""
        xml_file = self.folder / "Annotations/a.xml"
        xml_file.write_bytes(data)
        time = next(self._times)  # the loader reads a file again when its time has changed
        os.utime(xml_file, ns=(time, time))
        records = _loads(load_voc_multilabel, str(self.folder), "train", "fuzzed")
        if records is not None:
            check_records(records, len(CLASS_NAMES))
            objects = [o for o in ET.fromstring(data) if o.tag.lower() == "object"]
            names = {o.findtext("name").strip() for o in objects if _is_marked(o)}
            assert {CLASS_NAMES.index(name) for name in names} == _labels(records[0])
        return records is not None


class VocList:
    """The list of images of `load_voc_multilabel`; images "a" and "b" exist."""

    suffix = ".txt"
    valid = b"a\nb\n"

    def __init__(self, folder: str | os.PathLike):
        self.folder = _voc_folder(folder, "")
        for image_id in "ab":
            (self.folder / f"Annotations/{image_id}.xml").write_text(VOC_TEXT)

    def seeds(self) -> Iterator[bytes]:
        """The lists in `LISTS`."""
        yield from map(str.encode, LISTS)

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        """One change of the text."""
        return mutate_bytes(data, rng, LIST_TOKENS)

    def load(self, data: bytes) -> bool:
        """Load a list with this content; see `_loads`."""
        (self.folder / "ImageSets/Main/train.txt").write_bytes(data)
        records = _loads(load_voc_multilabel, str(self.folder), "train", "fuzzed")
        if records is not None:
            check_records(records, len(CLASS_NAMES))
            lines = io.StringIO(data.decode("utf-8-sig"), newline=None)  # not str.splitlines: \x85
            ids = [line.split()[0] for line in lines if line.strip()]
            assert ids == [record["image_id"] for record in records]
        return records is not None


TARGETS: dict[str, type] = {"coco": CocoJson, "voc": VocXml, "voc-list": VocList}


def check_records(records: list[dict[str, Any]], num_classes: int) -> None:
    """Assert what training and evaluation rely on in the dataset dicts of any data set."""
    assert records
    for record in records:
        height, width = record["height"], record["width"]
        assert type(height) is type(width) is int
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = annotation["bbox"]
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            assert annotation["category_id"] in _labels(record)
            assert annotation["iscrowd"] in (0, 1)
        present, ignored = record["image_labels"], record["ignored_labels"]
        assert present == sorted(set(present))
        assert ignored == sorted(set(ignored) - set(present))
        assert _labels(record) <= set(range(num_classes))


def _loads(load: Callable[..., list[dict]], *arguments: str) -> list[dict] | None:
    """Dataset dicts, or None for a DatasetError that can be printed; anything else is a fault."""
    try:
        return load(*arguments)
    except DatasetError as error:
        str(error).encode()
        return None


def _labels(record: dict[str, Any]) -> set[int]:
    return {*record["image_labels"], *record["ignored_labels"]}


def _check_coco_labels(records: list[dict[str, Any]], content: dict[str, Any]) -> None:
    """The labels of an image are the categories of its annotations, whatever their boxes.

    Two kinds of annotations count for nothing: those with neither a box nor a point, and the
    category without any that has the name of another one. Ids may be 3, 3.0 or "3".
    """
    used = {_number(a["category_id"]) for a in content["annotations"]}
    names = [category["name"] for category in content["categories"]]
    numbers = [_number(category["id"]) for category in content["categories"]]
    kept = [i for i, name in zip(numbers, names) if names.count(name) == 1 or i in used]
    expected: dict[str, set[int]] = {str(image["id"]): set() for image in content["images"]}
    for annotation in content["annotations"]:
        if not _marks_nothing(annotation):
            label = sorted(kept).index(_number(annotation["category_id"]))
            image_id = annotation["image_id"]
            image_id = int(image_id) if isinstance(image_id, float) else image_id
            expected[str(image_id)].add(label)
    assert {str(r["image_id"]): _labels(r) for r in records} == expected


def _marks_nothing(annotation: dict[str, Any]) -> bool:
    polygons = annotation.get("segmentation")
    points = itertools.chain(*polygons) if isinstance(polygons, list) else ()
    return not any(annotation.get("bbox") or ()) and not any(points)


def _number(value: Any) -> int:
    return int(value)  # of "3" and 3.0 too


def _is_marked(element: ET.Element) -> bool:
    corners = ("xmin", "ymin", "xmax", "ymax")  # float("nan") is true
    return any(float(element.findtext(f"bndbox/{corner}")) for corner in corners)


def _voc_folder(folder: str | os.PathLike, listed: str) -> Path:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        Path(folder, part).mkdir(parents=True, exist_ok=True)
    Path(folder, "ImageSets/Main/train.txt").write_text(listed)
    return Path(folder)


def _seeds(text: str, faults: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        yield text.encode(encoding)
    yield text.encode()[: len(text) // 2]
    for old, new in faults:
        if old not in text:
            raise ValueError(f"no {old} in the seed")
        yield text.replace(old, new, 1).encode()


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Drop, replace, repeat, exchange, retype or shift one value; else see `mutate_bytes`."""
    try:
        content = json.loads(data)
        slots = list(_slots(content))
        if slots and rng.random() < 0.9:
            change = rng.choice((_drop, _replace, _repeat, _exchange, _retype, _shift))
            change(slots, rng)
            return json.dumps(content).encode()
    except (ValueError, OverflowError, RecursionError):  # no json, or a value put into itself
        pass
    return mutate_bytes(data, rng, JSON_TOKENS)


Slot = tuple[Any, Any]  # a list or dict, and an index or key of it


def _slots(content: Any) -> Iterator[Slot]:
    stack = [content] if isinstance(content, (dict, list)) else []
    while stack:
        container = stack.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        for key in list(keys):
            yield container, key
            if isinstance(container[key], (dict, list)):
                stack.append(container[key])


def _drop(slots: list[Slot], rng: random.Random) -> None:
    container, key = rng.choice(slots)
    del container[key]


def _replace(slots: list[Slot], rng: random.Random) -> None:
    container, key = rng.choice(slots)
    container[key] = rng.choice(ODD_VALUES)


def _repeat(slots: list[Slot], rng: random.Random) -> None:
    container, key = rng.choice(slots)
    if isinstance(container, list):
        value = copy.deepcopy(container[key])
        if isinstance(value, dict) and rng.random() < 0.7:
            value["id"] = rng.randrange(1000)  # most likely a new one, so that the file loads
        container.insert(key, value)
    else:
        container[rng.choice(KEYS)] = container[key]


def _exchange(slots: list[Slot], rng: random.Random) -> None:
    (a, i), (b, j) = rng.choice(slots), rng.choice(slots)
    a[i], b[j] = b[j], a[i]


def _retype(slots: list[Slot], rng: random.Random) -> None:
    container, key = rng.choice(slots)
    value = container[key]
    container[key] = rng.choice((str(value), [value], {"id": value}, bool(value)))


def _shift(slots: list[Slot], rng: random.Random) -> None:
    numbers = [(c, k) for c, k in slots if type(c[k]) in (int, float)]
    container, key = rng.choice(numbers or slots)
    if numbers:
        container[key] += rng.choice((-1, 1, 0.5, 17))


def mutate_xml(data: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, move, rename or refill one element; else see `mutate_bytes`."""
    try:
        if rng.random() < 0.7:
            root = ET.fromstring(data)
            elements = list(root.iter())
            rng.choice((_drop_child, _repeat_child, _move_child, _rename, _refill))(elements, rng)
            return ET.tostring(root, encoding=rng.choice(ENCODINGS))
    except (ET.ParseError, LookupError, ValueError, RecursionError):  # no xml
        pass
    return mutate_bytes(data, rng, XML_TOKENS)


def _child(elements: list[ET.Element], rng: random.Random) -> tuple[ET.Element, ET.Element]:
    """An element and one of its children; IndexError, a LookupError, if there is none."""
    parent = rng.choice([e for e in elements if len(e)])
    return parent, rng.choice(list(parent))


def _drop_child(elements: list[ET.Element], rng: random.Random) -> None:
    parent, child = _child(elements, rng)
    parent.remove(child)


def _repeat_child(elements: list[ET.Element], rng: random.Random) -> None:
    parent, child = _child(elements, rng)
    parent.append(copy.deepcopy(child))


def _move_child(elements: list[ET.Element], rng: random.Random) -> None:
    parent, child = _child(elements, rng)
    parent.remove(child)
    rng.choice([e for e in elements if e not in child.iter()]).append(child)


def _rename(elements: list[ET.Element], rng: random.Random) -> None:
    rng.choice(elements).tag = rng.choice(TAGS)


def _refill(elements: list[ET.Element], rng: random.Random) -> None:
    rng.choice(elements).text = rng.choice(ODD_TEXTS)


def mutate_bytes(data: bytes, rng: random.Random, tokens: Sequence[bytes]) -> bytes:
    """Cut the end off, or take out, repeat, replace, fill or flip a part."""
    start, stop = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    before, part, after = data[:start], data[start:stop], data[stop:]
    token = rng.choice(tokens)
    byte = bytes([rng.randrange(256)])
    return rng.choice(
        (
            before,
            before + after,
            before + part + part + after,
            before + token + after,
            before + token + part + after,
            before + byte + (part + after)[1:],
        )
    )
