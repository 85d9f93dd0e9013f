#!/usr/bin/env python
"""Train and evaluate methods x seeds x data sets of a plan, and keep what each cell gives.

A cell is one `train_net.py` run. Its result, `<results>/<dataset>-<method>-<seed>.json`, and the
image scores beside it, `.npz`, are written when it has ended: a cell with a result is left as it
is, one that was killed starts again. Several runs with other --only may share a plan.

experiments/evidence.py draws tables and plots of the results.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from scnet_d2.data.coco import load_coco_multilabel
from scnet_d2.data.context_scenes import SPLITS, SceneConfig, context_blind_scores, generate
from scnet_d2.data.voc import load_voc_multilabel
from scnet_d2.evaluation import ScoreTable, multilabel_metrics, read_scores, write_scores
from scnet_d2.outputs import replacing, write_json

import numpy as np
import yaml
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASSES
from tqdm import tqdm

REPO = Path(__file__).resolve().parent.parent
LAYOUT = "{l_bar}{bar}| {n:.1f}/{total} cells [{elapsed}<{remaining}]"
DETECTION_AP = "TEST.DETECTION_AP"
REMEDY = "see experiments/results/*.yaml for examples"


class Cell(NamedTuple):
    """One training run."""

    dataset: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset}-{self.method}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared, read from a YAML file.

    Args:
        path: of the file; results lie in the folder of its name beside it.
        title: of table and plot.
        config: config file of train_net.py, relative to the repository; `{method}` stands for the
            method's name.
        seeds: one cell for each.
        methods: name -> config keys and their values.
        datasets: name -> `opts`, as in methods, and where the images come from: `voc`, VOC of parts
            of the split files ({year: {split: [from, modulus, [remainders of line number]]}});
            `labels`, beside it, tables of the labels of other parts alone ({name: [year, from,
            modulus, [remainders]]}), which are data sets of these names;
            `scenes`, arguments of `SceneConfig`; or neither, then $DETECTRON2_DATASETS as it is.
            `x` is the position in a curve.
        opts: config keys of all cells.
        groups: metric -> classes over which it is the mean AP, null for all; the first one leads.
        reference: method that the others are compared with.
        also: further such methods, one table for each.
        paired: methods whose difference to the reference is also given by size, occlusion and
            number of the objects.
        published: method -> what its authors published; for a table of all metrics and the cost.
        protocols: method -> how its authors count the metrics, where it is not the usual way; a
            name of PROTOCOLS in evidence.py.
        xlabel: what the data sets' x is.
        trained: "<plan>/<data set>": instead of training, the models of that plan's cells of the
            same method and seed, which --work still has, are evaluated.
        cross_validation: the data sets are parts of one, held out in turn; what is compared is the
            mean over them.
        objects: stored sizes and occlusion of objects, of evidence.py --objects, beside the plan.
    """

    path: Path
    title: str
    config: str
    seeds: list[int]
    methods: dict[str, dict]
    datasets: dict[str, dict]
    groups: dict[str, list[str] | None]
    reference: str
    opts: dict[str, Any] = field(default_factory=dict)
    xlabel: str = ""
    trained: str = ""
    cross_validation: bool = False
    objects: str = ""
    also: tuple[str, ...] = ()
    paired: tuple[str, ...] = ()
    published: dict[str, str] = field(default_factory=dict)
    protocols: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        """Folder of the results."""
        return self.path.with_suffix("")

    def config_of(self, method: str) -> str:
        """Config file of a method, relative to the repository."""
        return self.config.format(method=method)

    def cells(self) -> Iterator[Cell]:
        """All cells; the seeds come last, so that an early stop leaves every method with some."""
        for seed, dataset, method in itertools.product(self.seeds, self.datasets, self.methods):
            yield Cell(dataset, method, seed)

    def metrics(self, table: ScoreTable) -> dict[str, float]:
        """Mean AP in percent over the classes of each group, of stored scores."""
        return {
            group: round(group_metrics(table, classes)["mAP"], 4)
            for group, classes in self.groups.items()
        }

    def result(self, cell: Cell) -> dict | None:
        """What is stored of a finished cell."""
        path = self.results / f"{cell}.json"
        return json.loads(path.read_text()) if path.exists() else None


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ValueError: names a key that is missing or unknown.
    """
    contents = yaml.safe_load(path.read_text())
    own = [f for f in fields(Plan) if f.name != "path"]
    known = {f.name for f in own}
    required = {f.name for f in own if f.default is f.default_factory is MISSING}
    if not isinstance(contents, dict) or not required <= contents.keys() <= known:
        keys = set(contents) if isinstance(contents, dict) else set()
        raise ValueError(
            f"{path}: missing keys {sorted(required - keys)}, unknown keys "
            f"{sorted(map(str, keys - known))}; {REMEDY}"
        )
    named = {"reference": [contents["reference"]]}
    named |= {key: contents.get(key, ()) for key in ("also", "paired", "published", "protocols")}
    for key, methods in named.items():
        for method in methods:
            if method not in contents["methods"]:
                raise ValueError(f"{path}: {key} names '{method}', not one of its methods")
    return Plan(path, **contents)


def plan_or_error(path: Path, error: Callable[[str], NoReturn]) -> Plan:
    """Read a plan; what is wrong with it ends the program, by `error` of its argument parser."""
    try:
        return read_plan(path)
    except (OSError, ValueError, yaml.YAMLError) as problem:
        error(str(problem))


# ---- Data ---------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Data set of a cell."""

    root: str  # DETECTRON2_DATASETS
    arguments: list[str]  # of train_net.py


def prepare(name: str, dataset: dict, folder: Path) -> Data:
    """The images of a data set, made below `folder` where the plan asks for other than stock."""
    source = os.environ.get("DETECTRON2_DATASETS", "datasets")
    if "voc" in dataset:
        for year, splits in dataset["voc"].items():
            _link_voc(Path(source) / f"VOC{year}", folder / name / f"VOC{year}", splits)
        arguments = []
        for table, (year, *part) in dataset.get("labels", {}).items():
            root = folder / name / f"VOC{year}"
            _link_voc(Path(source) / f"VOC{year}", root, {table: part})
            file = _write_label_table(root, table)
            arguments += ["--register-labels", table, str(file), str(root / "JPEGImages")]
        return Data(str(folder / name), arguments)
    if "scenes" not in dataset:
        return Data(source, [])
    config = SceneConfig(**dataset["scenes"])
    scenes = Path(generate(str(folder / name), config))
    arguments = []
    if config != SceneConfig():
        for split in SPLITS:
            arguments += ["--register-coco", f"{name}_{split}"]
            arguments += [f"{scenes}/annotations/{split}.json", f"{scenes}/images/{split}"]
    return Data(str(folder / name), arguments)


def _link_voc(source: Path, target: Path, splits: dict[str, list]) -> None:
    lists = target / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    for folder in ("Annotations", "JPEGImages"):
        if not (target / folder).exists():
            (target / folder).symlink_to((source / folder).resolve())
    for split, (origin, modulus, remainders) in splits.items():
        lines = (source / "ImageSets" / "Main" / f"{origin}.txt").read_text().splitlines()
        kept = [line for i, line in enumerate(lines) if i % modulus in remainders]
        (lists / f"{split}.txt").write_text("\n".join(kept) + "\n")


def _write_label_table(root: Path, split: str) -> Path:
    """The labels of a split of VOC as a CSV, a column a class; unknown ones are empty cells."""
    file = root.absolute() / f"{split}.csv"
    with replacing(file, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["file", *VOC_CLASSES])
        for record in load_voc_multilabel(str(root), split, split):
            row = dict.fromkeys(range(len(VOC_CLASSES)), 0)
            row |= dict.fromkeys(record["image_labels"], 1)
            row |= dict.fromkeys(record["ignored_labels"], "")
            writer.writerow([Path(record["file_name"]).name, *row.values()])
    return file


# ---- Running ------------------------------------------------------------------------------------


def run_cell(plan: Plan, cell: Cell, work: Path, bar: tqdm, features: Path | None = None) -> dict:
    """Train and evaluate a cell; its result and image scores.

    Args:
        plan: that has the cell.
        cell: what is trained.
        work: folder of the run, log and weights.
        bar: moves on by one.
        features: folder for the features of frozen backbones, see frozen_features.py.

    Raises:
        RuntimeError: train_net.py failed; has the end of its log.
    """
    folder = work / plan.path.stem / str(cell)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dataset = plan.datasets[cell.dataset]
    data = prepare(cell.dataset, dataset, work / "data")
    opts = {**plan.opts, **dataset.get("opts", {}), **plan.methods[cell.method]}
    opts |= {"SEED": cell.seed, "OUTPUT_DIR": folder}
    config = plan.config_of(cell.method)
    program = ["train_net.py"]
    if features is not None:
        program = ["-m", "experiments.frozen_features", "--keep-features", str(features.resolve())]
    command = [sys.executable, *program, "--config-file", config, *data.arguments]
    if plan.trained:
        command.append("--eval-only")
        run_name = f"{plan.trained}-{cell.method}-{cell.seed}"
        opts["MODEL.WEIGHTS"] = work / run_name / "model_final.pth"
    command += [str(x) for item in opts.items() for x in item]
    start = time.perf_counter()
    with open(folder / "log.txt.run", "w") as log:
        process = subprocess.Popen(
            command, cwd=REPO, stdout=log, stderr=subprocess.STDOUT,
            env=os.environ | {"DETECTRON2_DATASETS": os.path.abspath(data.root)},
        )  # fmt: skip
        _follow(process, folder / "metrics.json", int(opts.get("SOLVER.MAX_ITER", 1000)), bar)
    if process.returncode:
        tail = "\n".join((folder / "log.txt.run").read_text().splitlines()[-15:])
        raise RuntimeError(f"{cell}: {' '.join(command)} ended with {process.returncode}\n{tail}")
    scores = sorted(folder.glob("inference/*/multilabel_scores.npz"))
    if "scenes" in dataset:
        store_bounds(plan, cell.dataset, scores[0], Path(data.root) / "context_scenes")
    result = {**cell._asdict(), "config": config, "opts": {k: str(v) for k, v in opts.items()}}
    for local in ("OUTPUT_DIR", "MODEL.WEIGHTS"):
        result["opts"].pop(local, None)
    result["seconds"] = round(time.perf_counter() - start)
    boxes = {"boxes": detection_ap(folder / "metrics.json")} if opts.get(DETECTION_AP) else {}
    return result | store_scores(plan, cell, scores) | boxes | environment()


def detection_ap(metrics: Path) -> dict[str, float]:
    """AP50 and AP75 of a run's detections in percent, mean over its test sets; 0 without any."""
    last = json.loads(metrics.read_text().splitlines()[-1])
    found = {
        name: [value for key, value in last.items() if key.endswith(f"/bbox/{name}")]
        for name in ("AP50", "AP75")
    }
    return {name: round(float(np.mean(values or 0)), 4) for name, values in found.items()}


def _follow(process: subprocess.Popen, metrics: Path, iterations: int, bar: tqdm) -> None:
    """Move the bar, one unit a cell, with the iterations of a run until it ends."""
    before = bar.n
    while process.poll() is None:
        time.sleep(1)
        if metrics.exists() and (lines := metrics.read_text().splitlines()):
            done = json.loads(lines[-1])["iteration"] / iterations
            bar.n = before + min(done, 0.99)  # the rest is evaluation
            bar.refresh()
    bar.n = before


def store_scores(plan: Plan, cell: Cell, scores: list[Path]) -> dict:
    """Keep the image scores, rounded to float16, and compute the metrics from what is kept.

    The images of several test sets are one set here.
    """
    tables = [read_scores(path) for path in scores]
    table = ScoreTable(
        *(np.concatenate([getattr(t, x) for t in tables]) for x in ("scores", "labels", "ignored")),
        tables[0].class_names,
        [image_id for t in tables for image_id in t.image_ids],
    )
    path = plan.results / f"{cell}.npz"
    plan.results.mkdir(parents=True, exist_ok=True)
    write_scores(path, table, np.float16)
    kept = read_scores(path)
    every = group_metrics(kept, None)
    per_class = dict(zip(kept.class_names, every.pop("per_class_AP").round(4).tolist()))
    all_metrics = {key: round(value, 4) for key, value in every.items()}
    return {"metrics": plan.metrics(kept), "all_classes": all_metrics, "per_class_AP": per_class}


def store_bounds(plan: Plan, dataset: str, scores: Path, scenes: Path) -> None:
    """Keep what a set of scenes gives without a model: class prevalence, and no context at all."""
    path = plan.results / f"{dataset}-bounds.json"
    if path.exists():
        return
    kept = read_scores(scores)
    split = scores.parent.name.split("_")[-1]
    train, test = (
        load_coco_multilabel(f"{scenes}/annotations/{s}.json", f"{scenes}/images/{s}", dataset)
        for s in ("train", split)
    )
    known = {
        "class prevalence": np.zeros(kept.labels.shape),
        "context-blind detector": context_blind_scores(train, test, classes=kept.class_names),
    }
    bounds = {
        name: {
            g: round(group_metrics(replace(kept, scores=s), c)["mAP"], 4)
            for g, c in plan.groups.items()
        }
        for name, s in known.items()
    }
    plan.results.mkdir(parents=True, exist_ok=True)
    write_json(path, bounds)


def group_metrics(table: ScoreTable, classes: list[str] | None) -> dict:
    """`multilabel_metrics` over some of the classes of stored scores."""
    table = table.of_classes(classes)
    return multilabel_metrics(table.scores, table.labels, table.ignored)


def environment() -> dict:
    """Commit and versions that a result was made with."""

    def git(*args):
        done = subprocess.run(("git", *args), cwd=REPO, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    packages = ("detectron2", "torch", "torchvision", "numpy")
    return {
        "commit": git("rev-parse", "HEAD"),
        "modified": git("status", "--porcelain", "--untracked-files=no") != "",
        "versions": {"python": sys.version.split()[0]} | {p: version(p) for p in packages},
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }


def write_result(plan: Plan, cell: Cell, result: dict) -> None:
    """Write the result of a cell, whole or not at all."""
    write_json(plan.results / f"{cell}.json", result)


def run(plan: Plan, cells: list[Cell], work: Path, features: Path | None = None) -> list[str]:
    """Run the cells that have no result; returns the messages of those that failed."""
    open_cells = [cell for cell in cells if plan.result(cell) is None]
    print(f"{plan.path}: {len(cells) - len(open_cells)} of {len(cells)} cells are done")
    failures = []
    with tqdm(total=len(open_cells), bar_format=LAYOUT, dynamic_ncols=True) as bar:
        for done, cell in enumerate(open_cells, 1):
            bar.set_description(str(cell))
            try:
                result = run_cell(plan, cell, work, bar, features)
                write_result(plan, cell, result)
                bar.write(f"{cell}: {result['metrics']}, {result['seconds']} s")
            except RuntimeError as error:
                failures.append(str(error))
                bar.write(str(error))
            bar.n = done
            bar.refresh()
    return failures


def main(arguments: list[str] | None = None) -> None:
    """Runs the open cells of a plan; exits with 1 where one failed."""
    args = argument_parser().parse_args(arguments)
    plan = plan_or_error(args.plan, args.error)
    cells = [cell for cell in plan.cells() if _chosen(cell, args.only)]
    if not cells:
        args.error(f"--only {args.only} leaves no cell of {args.plan}")
    failures = run(plan, cells, args.work, args.keep_features)
    if failures:
        sys.exit(f"{len(failures)} of {len(cells)} cells failed:\n\n" + "\n\n".join(failures))


def _chosen(cell: Cell, only: list[str] | None) -> bool:
    return not only or not {*map(str, cell), str(cell)}.isdisjoint(only)


def argument_parser() -> argparse.ArgumentParser:
    """Arguments of the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, help="YAML file, see experiments/results/")
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", help="data sets, methods, seeds or whole cells to run"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("output/compare"), help="logs and weights (%(default)s)"
    )
    parser.add_argument(
        "--keep-features",
        type=Path,
        metavar="FOLDER",
        help="compute the features of frozen backbones once and keep them there; equal results, "
        "minutes less for each cell, gigabytes",
    )
    parser.set_defaults(error=parser.error)
    return parser


if __name__ == "__main__":
    main()
