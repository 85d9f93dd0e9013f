"""Make a model folder of a run: config.yaml, weights and a model card, to use or to share.

The folder is kept only if it scores images as the run does. Rounding to float16 changes a score in
the fourth digit; where it makes the RPN choose another of two boxes, in the third.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .. import load_config
from ..data import (
    DatasetError,
    LabelPolicy,
    get_multilabel_dicts,
    read_image,
    register_arguments,
)
from ..data.context_scenes import SceneConfig, render_scene
from ..data.problems import counted
from ..evaluation.score_files import FILE_NAME, read_scores
from ..inference import SCNetPredictor
from ..inference.export import write_safetensors
from ..inference.run import CARD, CONFIG, MODEL_WEIGHTS, THRESHOLDS, prediction_config
from ..outputs import replacing
from ..report.model_card import model_card
from ..tagging.inputs import ImageFinder

TOLERANCE = 2e-3  # most that the scores of an image may differ in, in the median over images


def run(args: argparse.Namespace) -> int:
    """Write and check the folder; returns 1 where it was not kept."""
    if not args.run.is_dir():
        raise ValueError(f"{args.run} is no folder: give the OUTPUT_DIR of a run")
    register_arguments(args)
    predictor = SCNetPredictor.from_pretrained(args.run, "cpu", args.opts)
    card = write_card(args, predictor.class_names)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent) as made:
        folder = Path(made, args.output.name)
        write_folder(predictor, card, folder, half=args.dtype == "float16")
        differences = score_differences(predictor, folder, args.check)
        difference = np.median(differences)
        if not difference <= TOLERANCE:  # nor nan
            remedy = "use --dtype float32"
            if np.isnan(difference):
                remedy = "the weights may be of a training that diverged"
            print(
                f"Not kept: scores differ from the run's by {difference:.1e}, more than "
                f"{TOLERANCE:g}; {remedy}",
                file=sys.stderr,
            )
            return 1
        folder.rename(args.output)
    size = (args.output / MODEL_WEIGHTS).stat().st_size / 1e6
    print(
        f"{args.output}: {size:.1f} MB of weights; scores of {counted(len(differences), 'image')} "
        f"differ by {difference:.1e} from the run's (median), "
        f"{max(differences):.1e} (most)"
    )
    print(f"read {args.output / CARD} before you share it")
    return 0


def write_card(args: argparse.Namespace, names: list[str]) -> str:
    """The model card, from the config, the evaluations and, where it is there, the data."""
    cfg = load_config(args.run / CONFIG)
    files = args.scores or [args.run / "inference" / x / FILE_NAME for x in cfg.DATASETS.TEST]
    evaluated = {f.parent.name: read_scores(f) for f in files if args.scores or f.exists()}
    if not evaluated:
        print(f"the card lacks results: no {files[0] if files else FILE_NAME}", file=sys.stderr)
    images = train_images(cfg, names)
    return model_card(args.output.name, cfg, names, evaluated, images, args.licence)


def write_folder(predictor: SCNetPredictor, card: str, folder: Path, *, half: bool) -> None:
    """Write a model folder that is not there yet; with `half` in float16."""
    folder.mkdir()
    config = prediction_config(predictor.cfg)
    if thresholds := predictor.cfg.TEST.LABEL_THRESHOLDS:
        shutil.copyfile(thresholds, folder / THRESHOLDS)
        config.setdefault("TEST", {})["LABEL_THRESHOLDS"] = THRESHOLDS
    write_safetensors(predictor, folder / MODEL_WEIGHTS, half=half)
    for name, text in ((CONFIG, yaml.safe_dump(config)), (CARD, card)):
        with replacing(folder / name, "w") as file:
            file.write(text)


def score_differences(predictor: SCNetPredictor, folder: Path, files: Sequence[str]) -> list[float]:
    """For each image the most that a score of the folder differs in from the predictor's."""
    packaged = SCNetPredictor.from_pretrained(folder, "cpu")
    images = [read_image(file, format="BGR") for file in ImageFinder().find(files, [])]
    images = images or [render_scene(SceneConfig(), "test", i)[0] for i in range(4)]
    pairs = ((predictor(x)["image_scores"], packaged(x)["image_scores"]) for x in images)
    return [(a - b).abs().max().item() for a, b in pairs]


def train_images(cfg: CfgNode, names: list[str]) -> list[int] | None:
    """Number of training images with each label; None where the data are not at hand."""
    try:
        for name in cfg.DATASETS.TRAIN:
            if name not in DatasetCatalog:
                raise DatasetError(f"{name} is not registered, see --register-coco")
        dicts = get_multilabel_dicts(cfg.DATASETS.TRAIN, LabelPolicy.from_config(cfg))
        if list(MetadataCatalog.get(name).thing_classes) != names:
            raise DatasetError(f"{name} is of other classes than the model")
    except DatasetError as error:
        print(f"the card lacks the numbers of training images: {error}", file=sys.stderr)
        return None
    labels = [label for record in dicts for label in record["image_labels"]]
    return np.bincount(labels, minlength=len(names)).tolist()
