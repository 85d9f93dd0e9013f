"""Check data sets before training on them: files, counts, images and labels.

Every kind of problem is one line that starts with "problem:", counts its cases, shows the first
three and ends with what to do. The exit code is 1 where there is one.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import load_config
from ..data import (
    DatasetError,
    ImageError,
    LabelPolicy,
    register_arguments,
)
from ..data.catalog import find_nothing_to_learn
from ..data.images import image_size, is_turned, read_image
from ..data.labels import DEFAULT_POLICY, label_records
from ..data.problems import EMPTY_ANNOTATION, Problems, counted, find_empty_annotations
from ..data.voc import EMPTY_OBJECT

# Published number of images. COCO: json files of 2014 and 2017; VOC: the development kits' pages.
IMAGES = {
    "coco_2014_train_multilabel": 82_783,
    "coco_2014_val_multilabel": 40_504,
    "coco_2017_train_multilabel": 118_287,
    "coco_2017_val_multilabel": 5_000,
    "voc_2007_train_multilabel": 2_501,
    "voc_2007_val_multilabel": 2_510,
    "voc_2007_trainval_multilabel": 5_011,
    "voc_2007_test_multilabel": 4_952,
    "voc_2012_train_multilabel": 5_717,
    "voc_2012_val_multilabel": 5_823,
    "voc_2012_trainval_multilabel": 11_540,
}
# Those with at least one annotation, where work that drops the others gives the number.
ANNOTATED = {"coco_2014_train_multilabel": 82_081, "coco_2014_val_multilabel": 40_137}
# The ids of published images, which end the names of their files.
PUBLISHED = {
    "coco": r"(COCO_(train|val)2014_)?\d{12}\.jpg",
    "voc_2007": r"\d{6}\.jpg",
    "voc_2012": r"20\d\d_\d{6}\.jpg",
}
AGAIN = "get the archive again and unpack it over the folder (datasets/README.md)"
OWN = "put the right file into the image folder"  # data of one's own
LISTED = 10  # classes named one by one


def check(
    name: str,
    images: str | None = None,
    workers: int = 4,
    cfg: CfgNode | None = None,
    *,
    complete: bool = False,
) -> list[str]:
    """Check one registered data set and print what it holds.

    Args:
        name: of the data set.
        images: "header" or "full" to open or decode every image; None does neither.
        workers: number of processes that read images.
        cfg: whose label policy applies, and whose model is to be trained; None: the default policy,
            and a model that learns from boxes.
        complete: a part of a published data set is a problem; otherwise it is printed alone.

    Returns:
        A line for each kind of problem, with the remedy.
    """
    if MetadataCatalog.get(name).get("evaluator_type") != "multilabel":
        return [f"'{name}' is not a multi-label data set: choose from {', '.join(IMAGES)}"]
    policy = DEFAULT_POLICY if cfg is None else LabelPolicy.from_config(cfg)
    try:
        stored = DatasetCatalog.get(name)
        records = label_records(stored, policy)
    except DatasetError as error:
        problems, records = Problems(name), [r for r in error.records if r.get("height", True)]
        present = missing_files(records, problems)
        if images:
            unreadable(present, images, workers, problems)
        return error.problems + problems.lines()
    classes = MetadataCatalog.get(name).thing_classes
    counts = Counter(label for record in records for label in record["image_labels"])
    labels = sum(counts.values()) / max(len(records), 1)
    print(
        f"\n{name}: {counted(len(records), 'image')}, {len(labelled(records)):,} with a label, "
        f"{counted(len(classes), 'class')},\n{labels:.2f} labels an image; "
        "images with each label:"
    )
    print(histogram(classes, [counts[i] for i in range(len(classes))]))
    parts, problems = list(wrong_counts(name, stored)), Problems(name)
    if not complete:
        print("".join(f"\n{part}" for part in parts))
    find_nothing_to_learn([name], records, problems, cfg)
    unusable_boxes(stored, problems)
    repeated_files(records, problems)
    present = missing_files(records, problems)
    empty_classes(classes, counts, problems)
    if images:
        unreadable(present, images, workers, problems)
    return (parts if complete else []) + problems.lines()


def wrong_counts(name: str, records: list[dict]) -> Iterator[str]:
    """Number of images, and of images with a label, against the published ones."""
    for what, found, published in (
        ("images", len(records), IMAGES.get(name)),
        ("images with a label", len(labelled(records)), ANNOTATED.get(name)),
    ):
        if published not in (None, found):
            own = records and remedy(name, records[0]["file_name"]) == OWN
            yield (
                f"{name} has {found:,} {what}, published are {published:,}: it is a part, another "
                "release or data of your own, and results do not compare with published ones"
                f"{'' if own else f'; {AGAIN}'}"
            )


def unusable_boxes(records: list[dict], problems: Problems) -> None:
    """Annotations that mark nothing, and boxes that seem to be written another way."""
    is_voc = "dirname" in vars(MetadataCatalog.get(problems.source))
    find_empty_annotations(records, problems, EMPTY_OBJECT if is_voc else EMPTY_ANNOTATION)
    boxes = [a["bbox"] for r in records for a in r.get("annotations", ())]
    if boxes and all(x1 - x0 < 1 and y1 - y0 < 1 for x0, y0, x1, y1 in boxes):
        problems.add(
            f"all {len(boxes):,} boxes are smaller than a pixel",
            "are they relative coordinates, from 0 to 1? Write pixels: x and width times the width "
            "of the image, y and height times its height",
        )
    past = sum(r.get("boxes_past_edge", 0) for r in records)
    total = len(boxes) + sum(len(r.get("annotations_without_box", ())) for r in records)
    if past > total / 2:
        problems.add(
            f"{past:,} of {total:,} boxes end past the right or lower edge of their image",
            "are they [x0, y0, x1, y1]? A json has [x, y, width, height]. Else, are width and "
            "height of the images those of the files?",
        )


def labelled(records: list[dict]) -> list[dict]:
    """The images with at least one label, ignored ones included."""
    return [r for r in records if r["image_labels"] or r["ignored_labels"]]


def repeated_files(records: list[dict], problems: Problems) -> None:
    """Image files of several entries: each has a part of the labels, or those of another image."""
    for file, count in Counter(r["file_name"] for r in records).items():
        if count > 1:
            problems.add(
                f"image file '{file}' is listed {count} times",
                "merge its entries and their annotations, or give each image a file of its own",
            )


def missing_files(records: list[dict], problems: Problems) -> list[dict]:
    """Add the images that are listed but not there; return those that are."""
    present = []
    for record in records:
        if os.path.isfile(record["file_name"]):
            present.append(record)
        else:
            fault = f"image file '{record['file_name']}' does not exist"
            again = remedy(problems.source, record["file_name"])
            problems.add(fault, f"correct the name, or {again}")
    return present


def remedy(name: str, file: str) -> str:
    """What to do about a file: only published images have an archive, not those in their place."""
    of = next((of for of in PUBLISHED if name in IMAGES and name.startswith(of)), None)
    is_published = of and re.fullmatch(PUBLISHED[of], os.path.basename(file))
    return AGAIN if is_published else OWN


def empty_classes(classes: list[str], counts: Counter, problems: Problems) -> None:
    """Classes that no image has."""
    empty = [c for i, c in enumerate(classes) if not counts[i]]
    if empty:
        more = f" and {len(empty) - LISTED:,} more" if len(empty) > LISTED else ""
        problems.add(
            f"no image has {len(empty):,} of the {len(classes):,} classes, "
            f"{', '.join(empty[:LISTED])}{more}: these cannot be learned or evaluated",
            "add images or take the classes out",
        )


def unreadable(records: list[dict], how: str, workers: int, problems: Problems) -> None:
    """Images that cannot be read or have another size than annotated."""
    name = problems.source
    with ProcessPoolExecutor(workers) as pool:
        read = pool.map(partial(read_fault, name=name, how=how), records, chunksize=64)
        for fault in progress(read, len(records), f"{name}: images"):
            if fault:
                problems.add(*fault)


def read_fault(record: dict, name: str, how: str) -> tuple[str, str] | None:
    """What is wrong with an image file and what to do, or None."""
    path, annotated = record["file_name"], (record.get("width"), record.get("height"))
    try:
        height, width = image_size(path) if how == "header" else read_image(path, "BGR").shape[:2]
    except ImageError as error:
        return error.fault, error.remedy
    if annotated in ((width, height), (None, None)):  # a table of labels has no sizes
        return None
    if (height, width) == annotated and is_turned(path):
        fault = (
            f"image '{path}' is {(width, height)} as its EXIF data turn it and annotated as it is "
            f"stored, {annotated} (width, height)"
        )
        return fault, "annotate it as it is shown"
    return (
        f"image '{path}' is {(width, height)} and annotated as {annotated} (width, height)",
        remedy(name, path),
    )


def progress(items: Iterable, total: int, what: str) -> Iterator:
    """Pass items on; every second, say on stderr how many there were and how long is left."""
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > 1 or done == total:
            last, left = now, (now - start) / done * (total - done)
            print(f"\r{what} {done:,}/{total:,}, {left:.0f} s left ", end="", file=sys.stderr)
    print(file=sys.stderr)


def histogram(classes: list[str], counts: list[int], width: int | None = None) -> str:
    """Counts of the classes with bars, in as many columns as fit the terminal."""
    width = width or shutil.get_terminal_size().columns
    names = max(map(len, classes))
    digits = len(f"{max(counts):,}")
    columns = min(len(classes), max(1, (width + 2) // (names + digits + 9)))
    bar = max(1, (width + 2) // columns - names - digits - 4)
    cells = [
        f"{c:<{names}} {n:>{digits},} {'#' * -(-n * bar // (max(counts) or 1)):<{bar}}"
        for c, n in zip(classes, counts, strict=True)
    ]
    rows = -(-len(cells) // columns)
    return "\n".join("  ".join(cells[i::rows]).rstrip() for i in range(rows))


def built_in() -> list[str]:
    """The built-in data sets of photographs whose annotations are there."""
    return [name for name in IMAGES if os.path.exists(annotations(name))]


def annotations(name: str) -> str:
    """The file that lists the images of a built-in data set."""
    meta = MetadataCatalog.get(name)
    if meta.get("json_file"):
        return meta.json_file
    return os.path.join(meta.dirname, "ImageSets", "Main", f"{meta.split}.txt")


def run(args: argparse.Namespace) -> int:
    """Check the data sets; returns the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    names = args.names + register_arguments(args) or built_in()
    cfg = load_config(args.config_file) if args.config_file else None
    problems = [
        problem
        for name in names
        for problem in check(name, args.images, args.workers, cfg, complete=args.complete)
    ]
    if not names:
        problems = ["no built-in data set is there: set DETECTRON2_DATASETS (datasets/README.md)"]
    print(f"\n{counted(len(names), 'data set')}, {counted(len(problems), 'problem')}")
    for problem in problems:
        print(f"problem: {problem}")
    return 1 if problems else 0
