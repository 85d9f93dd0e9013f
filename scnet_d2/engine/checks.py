"""Checks of a config that take seconds and come before hours of training."""

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import check_dataset_names, read_run_config
from ..data import DatasetError, LabelPolicy, get_multilabel_dicts
from ..data.catalog import find_nothing_to_learn
from ..data.problems import Problems, counted, find_missing_files
from ..evaluation import label_thresholds
from ..evaluation.multilabel_evaluator import ground_truth

logger = logging.getLogger(__name__)

# Detectors of Detectron2's and Detectron's model zoos. The first are trained on train2017, the
# second on train2014 and "valminusminival2014", which are the same images.
_ZOO = re.compile(
    r"COCO-(Detection|InstanceSegmentation|Keypoints|PanopticSegmentation)/|LVISv|/Misc/"
    r"|new_baselines/|Caffe2Detectron/COCO/"
)
# (begin of the name of) training data, evaluation data, what they share
_OVERLAPS = (
    ("coco_2017_train", "coco_2014_val", "about 35,500 of its 40,504 images are in train2017"),
    ("coco_2014_val", "coco_2017_val", "its 5,000 images are part of val2014"),
)


def class_names(dataset_name: str) -> list[str]:
    """Names of the classes of a registered data set, which is read where that is needed.

    Raises:
        DatasetError: if no data set has this name.
    """
    if dataset_name not in DatasetCatalog:
        close = get_close_matches(dataset_name, DatasetCatalog.list(), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise DatasetError(
            f"there is no data set '{dataset_name}'.{hint} datasets/README.md lists the built-in "
            "ones; your own need --register-coco NAME JSON IMAGE_ROOT or "
            "--register-labels NAME FILE IMAGE_ROOT"
        )
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("thing_classes"):
        DatasetCatalog.get(dataset_name)  # a json's classes are known once it is read
    return list(metadata.thing_classes)


def check_num_classes(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Stop where a data set, the model's head and `DATASETS.CLASS_NAMES` have other classes.

    Args:
        cfg: a config with the project's keys.
        eval_only: the training data need not be at hand and are not looked at.

    Raises:
        ValueError: naming the data set and the three numbers, or the first class that differs, or
            a key that is a text in the place of names.
    """
    check_dataset_names(cfg)
    head, names = cfg.MODEL.ROI_HEADS.NUM_CLASSES, list(cfg.DATASETS.CLASS_NAMES)
    source = "DATASETS.CLASS_NAMES"
    remedy = (
        "a model is evaluated on the classes that it was trained on; write all of them, in their "
        "order, into the categories of the data set, also those without annotations"
        if eval_only
        else "write the same categories into all files, also those without annotations; where you "
        "did not mean this data set, name yours in DATASETS.TRAIN, DATASETS.VAL (or ()) and "
        "DATASETS.TEST"
    )
    datasets = tuple(cfg.DATASETS.TEST) if eval_only else (*cfg.DATASETS.TRAIN, *_evaluated(cfg))
    for dataset in datasets:
        found = class_names(dataset)
        classes = counted(len(found), "class")
        if len(names) == head != len(found) and (eval_only or dataset != datasets[0]):
            raise ValueError(
                f"data set {dataset} has {classes}, {source} and the model have {head}: {remedy}"
            )
        if not len(found) == head == len(names or found):
            raise ValueError(
                f"data set {dataset} has {classes} and the model {head}; "
                f"DATASETS.CLASS_NAMES has {len(names) or 'none'}. Set MODEL.ROI_HEADS.NUM_CLASSES "
                f"to {len(found)} and DATASETS.CLASS_NAMES to the names of its classes or []"
            )
        if names and names != found:
            i = next(i for i in range(head) if names[i] != found[i])
            raise ValueError(
                f"class {i} is '{found[i]}' in data set {dataset} and '{names[i]}' in {source}: "
                "scores would count for the wrong class; use data sets with the same classes in "
                "the same order, or correct DATASETS.CLASS_NAMES"
            )
        if not names:
            names, source = found, f"data set {dataset}"


def check_evaluation_data(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Load the evaluation data once: what is wrong with them stops before training, not after it.

    Args:
        cfg: a config with the project's keys.
        eval_only: only `DATASETS.TEST` is going to be evaluated.

    Raises:
        DatasetError: if a data set is absent or broken, or too many of its images are not there.
        ValueError: for labels, thresholds or a k with which the metrics cannot be computed.
    """
    policy = LabelPolicy.from_config(cfg)
    for dataset in dict.fromkeys(cfg.DATASETS.TEST if eval_only else _evaluated(cfg)):
        names, dicts = class_names(dataset), get_multilabel_dicts(dataset, policy)
        label_thresholds(cfg, names)
        ground_truth(dicts, dataset, len(names))
        problems = Problems(dataset)
        find_missing_files(dicts, cfg.DATALOADER.MAX_BAD_IMAGES, problems)
        if cfg.TEST.DETECTION_AP and "annotations" not in dicts[0]:
            problems.add("its images have labels and no boxes", "set TEST.DETECTION_AP False")
        problems.raise_any()
    if cfg.TEST.LABEL_TOP_K < 1:
        raise ValueError(f"TEST.LABEL_TOP_K is {cfg.TEST.LABEL_TOP_K}; set it to at least 1")


@contextmanager
def all_problems(cfg: CfgNode, *, eval_only: bool = False) -> Iterator[None]:
    """Where a data set is refused within it, look at the others too, and tell all their problems.

    Args:
        cfg: a config with the project's keys.
        eval_only: only `DATASETS.TEST` is looked at.

    Raises:
        DatasetError: with the problems of all data sets.
    """
    try:
        yield
    except DatasetError as error:
        datasets = (
            tuple(cfg.DATASETS.TEST) if eval_only else (*cfg.DATASETS.TRAIN, *_evaluated(cfg))
        )
        found = dict(_refused(cfg, datasets, () if eval_only else cfg.DATASETS.TRAIN))
        if len(found) < 2:
            raise
        lines = [line for other in found.values() for line in other.problems]
        text = "\n".join(map(str, found.values()))
        raise DatasetError(
            f"{counted(len(found), 'data set')} with problems:\n{text}", lines
        ) from error


def _refused(
    cfg: CfgNode, datasets: tuple[str, ...], trained: tuple[str, ...]
) -> Iterator[tuple[str, DatasetError]]:
    """The data sets that cannot be used, and why."""
    for dataset in dict.fromkeys(datasets):
        problems = Problems(dataset)
        try:
            class_names(dataset)
            dicts = get_multilabel_dicts(dataset, LabelPolicy.from_config(cfg))
            find_missing_files(dicts, cfg.DATALOADER.MAX_BAD_IMAGES, problems)
            if dataset in trained:
                find_nothing_to_learn([dataset], dicts, problems, cfg)
            problems.raise_any()
        except DatasetError as error:
            yield dataset, error


def check_output_dir(folder: str) -> None:
    """Stop where nothing can be written to a local output folder, which is made if absent.

    Raises:
        ValueError: naming the folder and the key.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
    except OSError as error:
        raise ValueError(
            f"OUTPUT_DIR {folder} cannot be written to ({error.strerror}); choose another folder "
            "with: OUTPUT_DIR <folder>"
        ) from error


def warn_of_leaks(cfg: CfgNode) -> None:
    """Warn where the weights or the training data have seen images of the evaluation data.

    Known are the names in `DATASETS.TRAIN`, `MODEL.WEIGHTS` of a model zoo (as an address or a
    path with its names), and both of them in the config.yaml beside a file of weights, which every
    training run leaves; that run's own weights are followed in the same way.
    """
    for evaluated in _evaluated(cfg):
        for origin, seen in _seen(cfg):
            shared = next((s for t, e, s in _OVERLAPS if _both(seen, evaluated, t, e)), None)
            if shared:
                logger.warning(
                    "%s\nTHE TEST IMAGES WERE TRAINED ON.\n%s is evaluated: %s.\n%s.\n"
                    "Its results will be too high. Start from ImageNet weights or from train2014 "
                    "alone\n(docs/reproduce.md), or evaluate other data.\n%s",
                    "!" * 88, evaluated, shared, origin, "!" * 88,
                )  # fmt: skip


def _evaluated(cfg: CfgNode) -> tuple[str, ...]:
    return tuple(cfg.DATASETS.VAL) + tuple(cfg.DATASETS.TEST)


def _both(seen: str, evaluated: str, train: str, test: str) -> bool:
    return seen.startswith(train) and evaluated.startswith(test)


def _seen(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Where training data are named, and the name of each."""
    where, weights, train = "this config", cfg.MODEL.WEIGHTS, cfg.DATASETS.TRAIN
    visited = set()
    while where not in visited:
        yield from _sources(where, weights, train)
        visited.add(where)
        weights = (weights or "").partition("?")[0]
        run = os.path.join(os.path.dirname(weights), "config.yaml")
        if not (os.path.isfile(weights) and os.path.isfile(run)):
            return
        earlier = read_run_config(run)
        weights, train = earlier["MODEL"].get("WEIGHTS"), earlier["DATASETS"].get("TRAIN") or ()
        where = run


def _sources(where: str, weights: str, train: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in train:
        yield f"DATASETS.TRAIN of {where} has {name}", name
    if _ZOO.search(weights or ""):
        yield f"MODEL.WEIGHTS of {where} is a detector trained on it: {weights}", "coco_2017_train"
