"""From the names in a checkpoint to the names in a model."""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts

from ..modeling import BRANCH_REGISTRY

_BOX_HEAD = re.compile(r"(?:roi_heads\.)?box_head\.(.+)")
_PREDICTOR = re.compile(r"(?:roi_heads\.box_predictor\.)?(cls_score|bbox_pred)\.(weight|bias)")
_BRANCHES = tuple(f"{head.name}_head" for _, head in BRANCH_REGISTRY)
_BRANCH_BOX_HEADS = tuple(f"roi_heads.{branch}.box_head." for branch in _BRANCHES)
_WHY_LEFT_OUT = (
    (r".*cell_anchors.*", "the config sets these"),
    (
        r"backbone\..*net\.(conv_head|bn2|norm|head\.norm)\..*",
        "no feature of MODEL.TIMM.OUT_FEATURES",
    ),
    (r"backbone\..*net\.(classifier|fc|head.*)\..*", "the classifier of ImageNet's 1000 classes"),
    (r"(linear|fc|fc1000|head\.fc)\.(weight|bias)", "the classifier of ImageNet's 1000 classes"),
)


# Names of the project's first version → those of now.
_FORMER = (
    (r"^(object|context)_head\.trunk\.", r"roi_heads.\1_head.box_head."),
    (r"^(object|context)_head\.", r"roi_heads.\1_head."),
    (r"^label_predictor\.", "head."),
)


class Conversion(NamedTuple):
    """What became of a detector's heads."""

    left_out: dict[str, str]  # name in the file → why
    sources: dict[str, str]  # part of the model → part of the file


def match_suffixes(
    state: dict[str, torch.Tensor], model_state: dict[str, torch.Tensor], caffe2: bool
) -> dict[str, torch.Tensor]:
    """Rename tensors as Detectron2 does: each goes to the tensor of the model whose name ends so.

    Args:
        state: the file's tensors.
        model_state: the model's.
        caffe2: the names are Caffe2's.

    Returns:
        The tensors under the model's names; those that match nothing keep their own. One of another
        shape is renamed too, so that it is reported as such.

    Raises:
        ValueError: if a name stands for several tensors of the model.
    """
    # "box_head.fc1.weight" of a detector would stand for all branches: see convert_detector
    single = {n: x for n, x in model_state.items() if not n.startswith(_BRANCH_BOX_HEADS)}
    with _only_errors("detectron2.checkpoint.c2_model_loading"):
        renamed = align_and_update_state_dicts(single, state, c2_conversion=caffe2)
    for name in [n for n in renamed if n not in model_state]:
        wanted = [m for m in model_state if m.endswith("." + name) and m not in renamed]
        if len(wanted) == 1:
            renamed[wanted[0]] = renamed.pop(name)
    return renamed


def rename_former(state: dict[str, torch.Tensor], model_state: dict[str, torch.Tensor]) -> None:
    """Give tensors that have names of the project's first version their present ones, in place."""
    for name in [n for n in state if n not in model_state]:
        renamed = name
        for pattern, new in _FORMER:
            renamed = re.sub(pattern, new, renamed)
        if renamed in model_state:
            state[renamed] = state.pop(name)


def convert_detector(
    state: dict[str, torch.Tensor], model_state: dict[str, torch.Tensor], init_trunk: bool
) -> Conversion:
    """Move a Faster R-CNN's box head into the branches, in place; other models stay untouched.

    Args:
        state: the file's tensors in Detectron2's naming.
        model_state: the model's.
        init_trunk: False leaves the box head out (`MODEL.SCNET.INIT_TRUNK_FROM_DETECTOR`).

    Returns:
        What was left out and where the rest came from.
    """
    conversion = Conversion({}, {})
    heads = [h for h in _BRANCH_BOX_HEADS if any(k.startswith(h) for k in model_state)]
    if not heads:
        return conversion
    for name in list(state):
        if box_head := _BOX_HEAD.fullmatch(name):
            targets = [head + box_head[1] for head in heads]
            why = "" if init_trunk else "MODEL.SCNET.INIT_TRUNK_FROM_DETECTOR is False"
        elif predictor := _PREDICTOR.fullmatch(name):
            targets = [f"roi_heads.object_head.location_regressor.{predictor[2]}"]
            why = _why_not_predictor(
                predictor[1], state[name], targets[0] in model_state, init_trunk
            )
        else:
            continue
        if not why and not any(target in model_state for target in targets):
            continue  # a box head of other layers: reported under its own name
        tensor = state.pop(name)
        if why:
            conversion.left_out[name] = why
            continue
        for target in targets:
            state[target] = tensor
            conversion.sources[part_of(target)] = part_of(name)
    return conversion


def why_left_out(name: str) -> str:
    """Reason why a tensor of the file has no place in the model."""
    for pattern, why in _WHY_LEFT_OUT:
        if re.fullmatch(pattern, name):
            return why
    return "the model has no such tensor"


def part_of(name: str) -> str:
    """The part of a model that a tensor belongs to, as the loading table groups them.

    Examples:
        `backbone.bottom_up.res2.0.conv1.weight` → `backbone.bottom_up`; `backbone.fpn_output2.bias`
        → `backbone.fpn`; `roi_heads.object_head.box_head.fc1.weight` →
        `roi_heads.object_head.box_head`.
    """
    first, second = [*name.split("."), ""][:2]
    if first == "backbone":
        return {"bottom_up": "backbone.bottom_up", "fpn": "backbone.fpn"}.get(
            second.split("_lateral")[0].split("_output")[0], first
        )
    if first == "roi_heads":
        return _module(name, 3 if second in ("box_predictor", *_BRANCHES) else 2)
    return first


def _why_not_predictor(layer: str, tensor, has_regressor: bool, init_trunk: bool) -> str:
    if layer == "cls_score":
        return (
            "softmax over the detector's classes and background; the label predictors are sigmoids"
        )
    if not has_regressor:
        return "the object branch is switched off"
    if not init_trunk:
        return "made for the box head, which was left out"
    if len(tensor) != 4:
        return (
            f"class-specific box deltas ({len(tensor) // 4} x 4); the regressor is class-agnostic"
        )
    return ""


def _module(name: str, depth: int) -> str:
    """The module of a tensor, at most `depth` names deep."""
    return ".".join(name.split(".")[:-1][:depth])


@contextlib.contextmanager
def _only_errors(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
