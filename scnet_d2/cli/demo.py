"""Label photographs: a picture of scores and boxes or class maps for each, and one JSON line."""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import tqdm
from detectron2.utils.logger import setup_logger

from ..data import ImageError, read_image
from ..data.problems import counted
from ..evaluation import predicted
from ..inference import (
    SCNetPredictor,
    describe_labels,
    draw_labels,
    label_maps,
    load_arguments,
    optimize_for_inference,
    rounded_scores,
)
from ..outputs import new_folder, write_image
from ..tagging.inputs import IMAGE_SUFFIXES, ImageFinder

LABELS_DRAWN = 8  # in a picture, or all predicted ones where they are more


def run(args: argparse.Namespace) -> int:
    """Label the images; returns 1 where one could not be read."""
    setup_logger(name="fvcore")
    cfg = load_arguments(args)
    files = list(find_files(args.inputs))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    lines = output / "labels.jsonl"
    predictor = SCNetPredictor(cfg)
    if args.backend:
        optimize_for_inference(predictor.model, backend=args.backend)
    thresholds = choose_thresholds(predictor, args.threshold)
    bad = 0
    with lines.open("w", buffering=1) as out:  # whole lines, also where the run is killed
        for i, file in enumerate(tqdm.tqdm(files, unit="image", disable=None)):
            try:
                image = read_image(file, format="BGR")
            except ImageError as error:  # one bad image must not end the run
                bad += 1
                record = {"file": file, "error": str(error)}
            else:
                prediction, names = predictor(image), predictor.class_names
                labels = describe_labels(prediction, names)
                drawn, maps = labels_to_draw(labels, thresholds), label_maps(prediction, names)
                picture = draw_labels(
                    image[:, :, ::-1], drawn, threshold=thresholds, class_maps=maps
                )
                path = output / f"{i:04d}_{_plain(Path(file).stem)}.png"
                write_image(path, picture[:, :, ::-1])
                record = make_record(file, image, labels, thresholds)
            print(json.dumps(record), file=out)
            tqdm.tqdm.write(json.dumps(record), file=sys.stdout)
    print(f"in {output}: {counted(len(files) - bad, 'picture')} and {lines.name}", file=sys.stderr)
    if bad:
        print(f"{bad} of {len(files)} images could not be read, see {lines}", file=sys.stderr)
    return 1 if bad else 0


def find_files(arguments: list[str]) -> Iterator[str]:
    """The files that arguments stand for, and the images of folders, as `scnet tag` finds them.

    A folder without images stands for itself.

    Raises:
        ValueError: see `ImageFinder.find`.
    """
    for argument in arguments:
        found = list(ImageFinder().find([argument], []))
        yield from found or [argument]


def _plain(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.-]", "_", name)[:60]


def choose_thresholds(predictor: SCNetPredictor, threshold: float | None) -> dict[str, float]:
    """The given threshold for every label, or the config's."""
    names = predictor.class_names
    if threshold is not None:
        return dict.fromkeys(names, threshold)
    return dict(zip(names, predictor.thresholds.tolist()))


def labels_to_draw(labels: list[dict], thresholds: dict[str, float]) -> list[dict]:
    """All predicted labels, and others up to the `LABELS_DRAWN` most likely ones."""
    return [
        x
        for rank, x in enumerate(labels)
        if rank < LABELS_DRAWN or predicted(x["score"], thresholds[x["label"]])
    ]


def make_record(file: str, image, labels: list[dict], thresholds: dict[str, float]) -> dict:
    """What is written of an image: its size and the predicted labels with their boxes."""
    height, width = image.shape[:2]
    chosen = [x for x in labels if predicted(x["score"], thresholds[x["label"]])]
    return {"file": file, "width": width, "height": height, "labels": rounded_scores(chosen)}


def picture_folder(path: str) -> Path:
    """See `new_folder`; a folder that is named as a picture is meant for one.

    Raises:
        argparse.ArgumentTypeError: also for such a name.
    """
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{path} is named as a picture: give a folder")
    return new_folder(path)
