"""Registered data sets as dataset dicts with image-level labels."""

from __future__ import annotations

import logging
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
from .images import read_sizes
from .labels import DEFAULT_POLICY, LabelPolicy, label_records
from .problems import Problems, counted, find_missing_files

logger = logging.getLogger(__name__)


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

    Those without `annotations`, which have labels alone, come last, with their sizes where the
    loader groups images by them.

    Raises:
        DatasetError: also if too many of their files do not exist, or no annotation has a box, or
            for an `ImageLabeler` a label, to train on.
    """
    check_dataset_names(cfg)
    names = cfg.DATASETS.TRAIN
    records = get_multilabel_dicts(names, LabelPolicy.from_config(cfg))
    problems = Problems(", ".join(names))
    find_missing_files(records, cfg.DATALOADER.MAX_BAD_IMAGES, problems)
    find_nothing_to_learn(names, records, problems, cfg)
    problems.raise_any()
    boxed = [record for record in records if "annotations" in record]
    labelled = [record for record in records if "annotations" not in record]
    if labelled:
        _check_labels_alone(cfg, len(labelled), problems.source)
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        read_sizes(labelled, ", ".join(names))
    if boxed:
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            boxed = filter_images_with_only_crowd_annotations(boxed)
        print_instances_class_histogram(boxed, MetadataCatalog.get(names[0]).thing_classes)
    if labelled:
        logger.info("images with labels alone: %d, with boxes: %d", len(labelled), len(boxed))
    return boxed + labelled


def _check_labels_alone(cfg: CfgNode, images: int, source: str) -> None:
    """Refuse images without boxes for a model that is trained on boxes alone.

    Raises:
        DatasetError: naming the remedy.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name == "GeneralizedRCNN" or (name == "SCNet" and not cfg.MODEL.SCNET.IMAGE.ENABLED):
        raise DatasetError(
            f"{source}: {counted(images, 'training image')} with labels and no boxes, and {name} "
            "is trained on boxes: set MODEL.SCNET.IMAGE.ENABLED True, whose predictor of the whole "
            "image learns from labels alone, take MODEL.META_ARCHITECTURE ImageLabeler, or leave "
            "these images out"
        )


def find_nothing_to_learn(
    names: Sequence[str],
    records: Sequence[dict[str, Any]],
    problems: Problems,
    cfg: CfgNode | None = None,
) -> None:
    """Add why data sets have nothing to train on; nothing where they have.

    Args:
        names: of the data sets.
        records: their dataset dicts, with the labels of a policy.
        problems: of the data.
        cfg: of the model. An `ImageLabeler` needs a label; any other one, and where there is no
            config, a box, unless no record has `annotations`: the data set has labels alone.
    """
    if cfg is not None and cfg.MODEL.META_ARCHITECTURE == "ImageLabeler":
        if not any(record.get("image_labels") for record in records):
            problems.add(
                f"no label in {counted(len(records), 'image')}: nothing to learn",
                "add annotations, or count crowds and difficult objects as labels: "
                "DATASETS.CROWD_LABELS present, DATASETS.DIFFICULT_LABELS present",
            )
        return
    boxed = [record for record in records if "annotations" in record]
    if boxed:
        is_voc = all("dirname" in vars(MetadataCatalog.get(name)) for name in names)
        _find_no_boxes(boxed, problems, is_voc)


def _find_no_boxes(records: Sequence[dict[str, Any]], problems: Problems, is_voc: bool) -> None:
    boxes = [a for record in records for a in record.get("annotations", ())]
    crowds = sum(bool(a.get("iscrowd", 0)) for a in boxes)
    if crowds < len(boxes):
        return
    keys = ("annotations_without_box", "empty_annotations")
    unusable = sum(len(record.get(key, ())) for record in records for key in keys)
    total = crowds + unusable
    if not total:
        fault = f"no annotations in {counted(len(records), 'image')}: no training boxes"
        xml = "add objects; DATASETS.DIFFICULT_LABELS absent leaves difficult ones out"
        problems.add(fault, xml if is_voc else "add annotations")
        return
    if is_voc:
        problems.add(
            f"{unusable:,} of {counted(total, 'object')} without a usable box: no training boxes",
            "correct <bndbox> in the xml files: xmin < xmax and ymin < ymax, inside the image",
        )
        return
    reasons = [f"{crowds:,} of {total:,} annotations are crowds"] if crowds else []
    reasons += [f"{unusable:,} of {total:,} have no usable box"] if unusable else []
    remedies = ["write iscrowd 0"] if crowds else []
    remedies += ["write [x, y, width, height] in pixels, inside the image"] if unusable else []
    problems.add(
        f"{', '.join(reasons)}: no training boxes", f"{' and '.join(remedies)} for single objects"
    )


def _load(name: str, policy: LabelPolicy) -> list[dict[str, Any]]:
    records = label_records(DatasetCatalog.get(name), policy)
    if not records:
        raise DatasetError(
            f"{name}: no image is annotated; set DATASETS.KEEP_UNANNOTATED True or annotate some"
        )
    return records
