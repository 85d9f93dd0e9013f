"""From the annotated objects of an image to its image-level labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

_STATES = ("present", "ignored", "absent")
_KEYS = {"difficult": "DATASETS.DIFFICULT_LABELS", "crowd": "DATASETS.CROWD_LABELS"}


@dataclass(frozen=True)
class LabelPolicy:
    """How uncertain annotations and unannotated images count.

    A class with at least one ordinary object is always present. The policy decides for a class
    whose every object in the image is difficult or a crowd; it never changes the boxes.

    Attributes:
        difficult: "present", "ignored" or "absent" for objects marked difficult. "ignored" is the
            0 of VOC's ``ImageSets/Main/<class>_<split>.txt``.
        crowd: the same for COCO's ``iscrowd`` regions.
        keep_unannotated: keep images without any annotation, as images with every label absent.
            COCO 2014 has 82,783 / 40,504 images with them and 82,081 / 40,137 without.

    Raises:
        ValueError: for a value that is not one of the three.
    """

    difficult: str = "ignored"
    crowd: str = "present"
    keep_unannotated: bool = True

    def __post_init__(self) -> None:
        for field, key in _KEYS.items():
            value = getattr(self, field)
            if value not in _STATES:
                raise ValueError(f"{key} is {value!r}; choose one of {', '.join(_STATES)}")

    @classmethod
    def from_config(cls, cfg: Any) -> LabelPolicy:
        """Read ``DATASETS.{DIFFICULT_LABELS,CROWD_LABELS,KEEP_UNANNOTATED}``.

        A stock Detectron2 config, which lacks these keys, has the default policy.
        """
        return cls(
            difficult=cfg.DATASETS.get("DIFFICULT_LABELS", cls.difficult),
            crowd=cfg.DATASETS.get("CROWD_LABELS", cls.crowd),
            keep_unannotated=cfg.DATASETS.get("KEEP_UNANNOTATED", cls.keep_unannotated),
        )

    def state(self, annotation: Mapping[str, Any]) -> str:
        """What one annotated object says of its class: "present", "ignored" or "absent"."""
        if annotation.get("difficult", 0):
            return self.difficult
        return self.crowd if annotation.get("iscrowd", 0) else "present"


DEFAULT_POLICY = LabelPolicy()


def image_labels(
    annotations: Iterable[Mapping[str, Any]], policy: LabelPolicy
) -> tuple[list[int], list[int]]:
    """Sorted ``category_id`` values of an image that are present, and those that are ignored.

    Args:
        annotations: objects with ``category_id`` and, where set, ``iscrowd`` and ``difficult``.
        policy: what uncertain objects count as.

    Returns:
        ``(present, ignored)``, disjoint: one object that says "present" is enough, and "ignored"
        goes before "absent".
    """
    found: dict[str, set[int]] = {state: set() for state in _STATES}
    for annotation in annotations:
        found[policy.state(annotation)].add(annotation["category_id"])
    return sorted(found["present"]), sorted(found["ignored"] - found["present"])


def label_records(records: Iterable[dict[str, Any]], policy: LabelPolicy) -> list[dict[str, Any]]:
    """The dataset dicts that a policy keeps, each as :func:`label_record` gives it."""
    kept = (r for r in records if policy.keep_unannotated or _is_annotated(r))
    return [label_record(record, policy) for record in kept]


def label_record(record: dict[str, Any], policy: LabelPolicy) -> dict[str, Any]:
    """A dataset dict with the labels and boxes that a policy gives it; the input stays as it is.

    The labels follow from ``annotations`` and ``annotations_without_box``. A record that has
    ``image_labels`` but not ``annotations_without_box`` is none of this package's loaders: its
    labels were given by somebody, and are kept.

    Args:
        record: with all its annotations, as ``DatasetCatalog`` has it.
        policy: what uncertain objects count as.

    Returns:
        The record with ``image_labels`` and ``ignored_labels``, and without difficult objects where
        these count as absent; the record itself where it has no annotations.
    """
    if "annotations" not in record:
        return record
    record = dict(record)
    if "image_labels" not in record or "annotations_without_box" in record:
        objects = chain(record["annotations"], record.get("annotations_without_box", ()))
        record["image_labels"], record["ignored_labels"] = image_labels(objects, policy)
    if policy.difficult == "absent":
        record["annotations"] = [a for a in record["annotations"] if not a.get("difficult", 0)]
    return record


def _is_annotated(record: dict[str, Any]) -> bool:
    keys = ("annotations", "annotations_without_box", "image_labels", "ignored_labels")
    return any(record.get(key) for key in keys)
