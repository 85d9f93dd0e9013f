"""Sizes, occlusion and number of the objects in VOC's photographs, stored beside the plans."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from scnet_d2.outputs import replacing

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

SIZES = ((0, 0.05), (0.05, 0.25), (0.25, 1.01))  # of an object / of the image


class Objects(NamedTuple):
    """What is stored of the objects in N images, and of C labels."""

    share: np.ndarray  # (N, C) of the image, that the largest object takes; 0: no such label
    occluded: np.ndarray  # (N, C) int8: 1 if all objects of the label are, 0 if not, -1 if unknown
    truncated: np.ndarray  # (N, C) int8, by the border of the image, likewise
    count: np.ndarray  # (N,) objects of all classes
    image_ids: list[str]

    def groups(self) -> dict[str, dict[str, np.ndarray]]:
        """Breakdown -> group -> (N, C) bool, entries of another group, which do not count."""
        present, count = self.share > 0, self.count[:, None]
        sizes = {
            f"{low:.0%} to {min(high, 1):.0%}": present
            & ~((self.share >= low) & (self.share < high))
            for low, high in SIZES
        }
        flags = {
            name: {label: present & (flag != value) for value, label in enumerate(("no", "yes"))}
            for name, flag in (("occluded", self.occluded), ("truncated", self.truncated))
        }
        counts = {
            name: ((count < low) | (count > high)).repeat(present.shape[1], axis=1)
            for name, low, high in (("1", 1, 1), ("2 to 3", 2, 3), ("4 or more", 4, np.inf))
        }
        return {"largest object / image": sizes, **flags, "objects in the image": counts}


def read_objects(path: Path, classes: list[str] | None) -> Objects:
    """What `write_objects` stored, of some classes."""
    with np.load(path, allow_pickle=False) as arrays:
        names = arrays["class_names"].tolist()
        columns = [names.index(c) for c in classes or names]
        of_labels = (arrays[x][:, columns] for x in ("share", "occluded", "truncated"))
        return Objects(*of_labels, arrays["count"], arrays["image_ids"].tolist())


def write_objects(datasets: list[str], path: Path) -> None:
    """Store `Objects` of VOC data sets.

    The images of the data sets in the order of their names, as compare.py puts scores together.
    """
    names = MetadataCatalog.get(datasets[0]).thing_classes
    dicts = [d for dataset in sorted(datasets) for d in DatasetCatalog.get(dataset)]
    share = np.zeros((len(dicts), len(names)), np.float16)
    for row, d in zip(share, dicts):
        for a in d["annotations"]:
            x0, y0, x1, y1 = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            area = (x1 - x0) * (y1 - y0) / (d["width"] * d["height"])
            row[a["category_id"]] = max(row[a["category_id"]], area)
    files = [Path(d["file_name"]) for d in dicts]
    trees = [ElementTree.parse(f.parents[1] / "Annotations" / f"{f.stem}.xml") for f in files]
    flags = {f: np.stack([_all_are(t, f, names) for t in trees]) for f in ("occluded", "truncated")}
    count = np.array([len(d["annotations"]) for d in dicts])
    ids = np.array([str(d["image_id"]) for d in dicts])
    with replacing(path) as file:
        np.savez_compressed(
            file, image_ids=ids, class_names=names, share=share, count=count, **flags
        )


def _all_are(tree: ElementTree.ElementTree, flag: str, names: list[str]) -> np.ndarray:
    """(C,) int8: 1 if all objects of a label have a flag of a VOC file, 0 if not, -1 if unknown."""
    row = np.full(len(names), -1, np.int8)
    for item in tree.iter("object"):
        if (value := item.findtext(flag)) is not None:
            column = names.index(item.findtext("name"))
            row[column] = int(value) if row[column] < 0 else min(row[column], int(value))
    return row
