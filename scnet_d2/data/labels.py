"""From the annotated objects of an image to its image-level labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_STATES = ("present", "ignored", "absent")


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
        for field in ("difficult", "crowd"):
            value = getattr(self, field)
            if value not in _STATES:
                raise ValueError(f"LabelPolicy.{field} is {value!r}; choose one of {_STATES}")

    @classmethod
    def from_config(cls, cfg: Any) -> LabelPolicy:
        """Read ``DATASETS.{DIFFICULT_LABELS,CROWD_LABELS,KEEP_UNANNOTATED}``."""
        return cls(
            difficult=cfg.DATASETS.DIFFICULT_LABELS,
            crowd=cfg.DATASETS.CROWD_LABELS,
            keep_unannotated=cfg.DATASETS.KEEP_UNANNOTATED,
        )

    def state(self, annotation: Mapping[str, Any]) -> str:
        """What one annotated object says of its class: "present", "ignored" or "absent"."""
        if annotation.get("difficult", 0):
            return self.difficult
        return self.crowd if annotation.get("iscrowd", 0) else "present"


_policy = LabelPolicy()


def get_label_policy() -> LabelPolicy:
    """The policy with which data sets are loaded in this process."""
    return _policy


def set_label_policy(policy: LabelPolicy) -> LabelPolicy:
    """Select the policy of every data set loaded from now on; returns the previous one."""
    global _policy
    previous, _policy = _policy, policy
    return previous


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
    states: dict[int, set[str]] = defaultdict(set)
    for annotation in annotations:
        states[annotation["category_id"]].add(policy.state(annotation))
    present = sorted(c for c, seen in states.items() if "present" in seen)
    ignored = sorted(c for c, seen in states.items() if "ignored" in seen and c not in present)
    return present, ignored
