"""Registered data sets as dataset dicts with image-level labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.detection_utils import check_metadata_consistency

from ..config import check_dataset_names
from .errors import DatasetError
from .labels import DEFAULT_POLICY, LabelPolicy, label_records
from .problems import Problems, find_missing_files


def get_multilabel_dicts(
    names: str | Sequence[str], policy: LabelPolicy = DEFAULT_POLICY
) -> list[dict[str, Any]]:
    """Load registered data sets, any that Detectron2 knows, with the labels of a policy.

    Args:
        names: of one data set, or of several with the same classes.
        policy: see :func:`label_records`.

    Returns:
        Dataset dicts of all data sets, in their order.

    Raises:
        DatasetError: if a data set is absent or broken, or the policy leaves no image of it.
        ValueError: if their classes differ.
    """
    names = [names] if isinstance(names, str) else list(names)
    records = [record for name in names for record in _load(name, policy)]
    if len(names) > 1:
        check_metadata_consistency("thing_classes", names)
    return records


def get_training_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """The images of `DATASETS.TRAIN`, with the labels of the config's policy.

    Raises:
        DatasetError: also if too many of their files do not exist, or no annotation has a box to
            train on.
    """
    check_dataset_names(cfg)
    names = cfg.DATASETS.TRAIN
    records = get_multilabel_dicts(names, LabelPolicy.from_config(cfg))
    problems = Problems(", ".join(names))
    find_missing_files(records, cfg.DATALOADER.MAX_BAD_IMAGES, problems)
    if "annotations" in records[0]:
        find_no_boxes(records, problems)
    problems.raise_any()
    if "annotations" in records[0]:
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            records = filter_images_with_only_crowd_annotations(records)
        print_instances_class_histogram(records, MetadataCatalog.get(names[0]).thing_classes)
    return records


def find_no_boxes(records: Sequence[dict[str, Any]], problems: Problems) -> None:
    """Add why dataset dicts have no box to train on; nothing where they have one."""
    boxes = [a for record in records for a in record.get("annotations", ())]
    crowds = sum(bool(a.get("iscrowd", 0)) for a in boxes)
    if crowds < len(boxes):
        return
    keys = ("annotations_without_box", "empty_annotations")
    unusable = sum(len(record.get(key, ())) for record in records for key in keys)
    total = crowds + unusable
    if not total:
        fault = f"no annotations in {len(records):,} images: no training boxes"
        problems.add(fault, "add annotations")
        return
    reasons = [f"{crowds:,} of {total:,} annotations are crowds"] if crowds else []
    reasons += [f"{unusable:,} of {total:,} have no usable box"] if unusable else []
    problems.add(
        f"{', '.join(reasons)}: no training boxes", "write iscrowd 0 and a box for single objects"
    )


def _load(name: str, policy: LabelPolicy) -> list[dict[str, Any]]:
    records = label_records(DatasetCatalog.get(name), policy)
    if not records:
        raise DatasetError(
            f"{name}: no image is annotated; set DATASETS.KEEP_UNANNOTATED True or annotate some"
        )
    return records
