"""Registers the built-in multi-label data sets under ``$DETECTRON2_DATASETS``.

The root is read when a data set is loaded, not when it is registered; registering touches no file.
``datasets/README.md`` describes the directory layout.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASSES

from . import context_scenes
from .coco import load_coco_multilabel
from .errors import require_path
from .voc import load_voc_multilabel

_VOC_SPLITS = {2007: ("train", "val", "trainval", "test"), 2012: ("train", "val", "trainval")}


def datasets_root() -> str:
    """The root of the built-in data sets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def _remedy(root: str) -> str:
    return (
        f"The data sets root is '{root}'; the environment variable DETECTRON2_DATASETS sets it. "
        "datasets/README.md shows the layout and where to get the data."
    )


def _load_coco(name: str, image_dir: str, json_file: str) -> list[dict[str, Any]]:
    root = datasets_root()
    remedy = _remedy(root)
    require_path(root, name, remedy, folder=True)
    return load_coco_multilabel(
        os.path.join(root, json_file), os.path.join(root, image_dir), name, remedy=remedy
    )


def _load_voc(name: str, year: int, split: str) -> list[dict[str, Any]]:
    root = datasets_root()
    remedy = _remedy(root)
    require_path(root, name, remedy, folder=True)
    dirname = os.path.join(root, f"VOC{year}")
    vars(MetadataCatalog.get(name)).update(dirname=dirname)
    return load_voc_multilabel(dirname, split, name, remedy=remedy)


def _load_context_scenes(name: str, image_dir: str, json_file: str) -> list[dict[str, Any]]:
    context_scenes.ensure_generated(datasets_root())
    return _load_coco(name, image_dir, json_file)


def _register(name: str, load: Callable[[], list[dict]], **metadata: Any) -> None:
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(evaluator_type="multilabel", **metadata)


def _register_coco_format(
    name: str, load: Callable, image_dir: str, json_file: str, **metadata: Any
) -> None:
    root = datasets_root()
    _register(
        name,
        partial(load, name, image_dir, json_file),
        json_file=os.path.join(root, json_file),
        image_root=os.path.join(root, image_dir),
        **metadata,
    )


def register_all() -> None:
    """Register every built-in data set; names that are there already stay as they are."""
    for year in (2014, 2017):
        for split in ("train", "val"):
            _register_coco_format(
                f"coco_{year}_{split}_multilabel",
                _load_coco,
                f"coco/{split}{year}",
                f"coco/annotations/instances_{split}{year}.json",
                **_get_builtin_metadata("coco"),
            )
    for year, splits in _VOC_SPLITS.items():
        for split in splits:
            name = f"voc_{year}_{split}_multilabel"
            dirname = os.path.join(datasets_root(), f"VOC{year}")
            metadata = {"dirname": dirname, "split": split, "year": year}
            load = partial(_load_voc, name, year, split)
            _register(name, load, thing_classes=list(VOC_CLASSES), **metadata)
    for split in ("train", "val", "test"):
        _register_coco_format(
            f"context_scenes_{split}",
            _load_context_scenes,
            f"context_scenes/images/{split}",
            f"context_scenes/annotations/{split}.json",
            thing_classes=list(context_scenes.CLASSES),
            class_groups={"ambiguous": list(chain(*context_scenes.CONTEXT_PAIRS))},
            baselines={"context-blind detector": context_scenes.context_blind_scores},
        )


register_all()
