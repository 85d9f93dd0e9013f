#!/usr/bin/env python
"""Tables and plots of all stored comparisons: results/**/*.yaml and what compare.py kept.

Prints the tables of each plan and keeps them beside it, `<plan>.txt`; puts them into docs/*.md
after lines such as `<!-- experiments/results/photographs.txt 2 -->`, the second table of that
file; writes the plots to docs/images/results/, in folders as the plans are, and an evidence.json
beside the plans: {plan: {method: {metric: [percent, one for each seed]}}}, where a plan of several
data sets has an entry `plan/data set` for each. Nothing is trained or evaluated again; metrics are
computed from the stored image scores.

Differences are paired: by seed, and by image. Their intervals: "images", the percentile bootstrap
over test images of the mean over the seeds (1000 replicates); "seeds", Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from scnet_d2.evaluation import bootstrap_map, multilabel_metrics, read_scores
from scnet_d2.outputs import replacing, write_json

import compare_fusion
import context_ratios
import cost
import fusion_weights
import label_relations
import numpy as np
import occlusion_test
from compare import DETECTION_AP, LAYOUT, REMEDY, Cell, Plan, plan_or_error, run_cell
from matplotlib.figure import Figure
from scipy.stats import t as student_t
from tabulate import tabulate
from tqdm import tqdm
from voc_objects import read_objects, write_objects

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
IMAGES = DOCS / "images" / "results"
# In a document: the file of tables, the number of one, and the lines of it.
QUOTED = re.compile(r"(<!-- (\S+\.txt) (\d+) -->\n```\n)(.*?)(?=\n```)", re.DOTALL)
REPLICATES = 1000
FEWEST = 10  # boxes of a group that is drawn
METRICS = ("CP", "CR", "CF1", "OP", "OR", "OF1")
# How authors count -> what they print in the place of METRICS.
PROTOCOLS = {
    "the three highest scores": [f"{name}_top3" for name in METRICS],
    "CF1 is the mean over classes": ["CP", "CR", "CF1_mean", "OP", "OR", "OF1"],
}


class Scores(NamedTuple):
    """Stored image scores of one cell, over the classes of a group."""

    scores: np.ndarray  # (N, C) float32
    labels: np.ndarray  # (N, C) bool
    ignored: np.ndarray  # (N, C) bool


class Part(NamedTuple):
    """Labels of objects of one size, or the like."""

    name: str
    out: np.ndarray  # (N, C) bool, present labels of other objects, which are left out


class Difference(NamedTuple):
    """Paired difference to the reference in points, with 95 % intervals."""

    mean: float
    images: tuple[float, float]
    seeds: tuple[float, float] | None  # None for a single seed

    def __str__(self) -> str:
        seeds = "-" if self.seeds is None else "{:+.1f} to {:+.1f}".format(*self.seeds)
        return "{:+.2f} | {:+.1f} to {:+.1f} | {}".format(self.mean, *self.images, seeds)


class Comparison:
    """The finished cells of a plan on one data set."""

    def __init__(self, plan: Plan, dataset: str):
        self.plan = plan
        self.dataset = dataset
        self._tables, self._metrics, self._kept = {}, {}, {}
        self.seeds = {
            method: [s for s in plan.seeds if plan.result(Cell(dataset, method, s))]
            for method in plan.methods
        }

    @cached_property
    def methods(self) -> list[str]:
        """Methods with a finished cell."""
        return [method for method, seeds in self.seeds.items() if seeds]

    def scores(
        self, method: str, seed: int, classes: list[str] | None, part: Part | None = None
    ) -> Scores:
        """What a cell's image scores are, over some classes."""
        cell = Cell(self.dataset, method, seed)
        if cell not in self._tables:
            self._tables[cell] = read_scores(self.plan.results / f"{cell}.npz")
        table = self._tables[cell].of_classes(classes)
        if part is None:
            return Scores(table.scores, table.labels, table.ignored)
        return Scores(table.scores, table.labels & ~part.out, table.ignored | part.out)

    def metrics(self, method: str, group: str, part: Part | None = None) -> list[dict[str, float]]:
        """All metrics in percent, for each finished seed."""
        key = method, group, part and part.name
        if key not in self._metrics:
            self._metrics[key] = [
                multilabel_metrics(*self.scores(method, seed, self.plan.groups[group], part))
                for seed in self.seeds[method]
            ]
        return self._metrics[key]

    def values(self, method: str, group: str, part: Part | None = None) -> np.ndarray:
        """Mean AP in percent, one for each finished seed."""
        return np.array([metrics["mAP"] for metrics in self.metrics(method, group, part)])

    def _resampled(self, method: str, seed: int, group: str, part: Part | None) -> np.ndarray:
        """Mean AP of a cell's replicates (R,); the images are the same for all cells."""
        if (key := (method, seed, group, part and part.name)) not in self._kept:
            scores = self.scores(method, seed, self.plan.groups[group], part)
            self._kept[key] = bootstrap_map(*scores, replicates=REPLICATES)
        return self._kept[key]

    def difference(
        self, method: str, reference: str, group: str, part: Part | None = None
    ) -> Difference | None:
        """Method - reference over the seeds that both have; None without one."""
        seeds = [s for s in self.seeds[method] if s in self.seeds[reference]]
        if not seeds:
            return None
        before, after = (
            dict(zip(self.seeds[name], self.values(name, group, part)))
            for name in (reference, method)
        )
        values = np.array([after[seed] - before[seed] for seed in seeds])
        samples = [
            self._resampled(method, seed, group, part)
            - self._resampled(reference, seed, group, part)
            for seed in seeds
        ]
        images = np.nanquantile(np.mean(samples, axis=0), [0.025, 0.975])
        return Difference(float(values.mean()), tuple(images), _t_interval(values))


def _t_interval(values: np.ndarray) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


# ---- Tables -------------------------------------------------------------------------------------


def table(comparison: Comparison, reference: str) -> str:
    """Mean ± sd over the seeds of every method, and its difference to one of them."""
    plan, (lead, *_) = comparison.plan, comparison.plan.groups
    rows = []
    for method in comparison.methods:
        values = [
            occlusion_test.mean_sd(comparison.values(method, group), ".2f") for group in plan.groups
        ]
        difference = None
        if method != reference:
            difference = comparison.difference(method, reference, lead)
        cells = str(difference).split(" | ") if difference else [""] * 3
        rows.append([method, len(comparison.seeds[method]), *values, *cells])
    headers = ["", "seeds", *plan.groups, f"- {reference}", "images 95 %", "seeds 95 %"]
    text = tabulate(rows, headers, disable_numparse=True)
    return "\n".join([f"{comparison.dataset}", text, *bounds(comparison)])


def tables(comparison: Comparison) -> Iterator[str]:
    """What is printed of a comparison."""
    plan = comparison.plan
    also = [method for method in plan.also if method in comparison.methods]
    for reference in (plan.reference, *also):
        yield table(comparison, reference)
    if plan.opts.get(DETECTION_AP):
        yield boxes(comparison)
    if plan.published:
        yield all_metrics(comparison)
    if plan.protocols:
        yield metrics_as_published(comparison)
    if plan.objects:
        yield by_class(comparison)
        yield from by_object(comparison, plan.path.parent / plan.objects)


def boxes(comparison: Comparison) -> str:
    """AP of the detections of every method, mean ± sd over the seeds."""
    rows = []
    for method in comparison.methods:
        cells = [Cell(comparison.dataset, method, s) for s in comparison.seeds[method]]
        found = [comparison.plan.result(cell)["boxes"] for cell in cells]
        rows.append(
            [method, *(occlusion_test.mean_sd([x[n] for x in found], ".1f") for n in found[0])]
        )
    return tabulate(rows, ["boxes", *found[0]], disable_numparse=True)


def all_metrics(comparison: Comparison) -> str:
    """Metrics at a score of 0.5 over the lead group's classes, mean over the seeds; and cost."""
    plan = comparison.plan
    stored = plan.results / cost.FILE
    costs = json.loads(stored.read_text())["methods"] if stored.exists() else {}
    rows = []
    for method in comparison.methods:
        cpu = [""] * 3
        if x := costs.get(method):
            cpu = [f"{x['trained'] / 1e6:.2f}", f"{x['ms']:.0f}", f"{x['step_ms'] / 1000:.2f}"]
        means = mean_metrics(comparison, method, METRICS)
        rows.append([method, *means, *cpu, plan.published.get(method, "")])
    headers = ["", *METRICS, "M", "ms", "s", "published: COCO/VOC"]
    note = "M: million trained parameters; ms: CPU time of an image; s: of a training step"
    return f"{tabulate(rows, headers, disable_numparse=True)}\n{note}"


def mean_metrics(comparison: Comparison, method: str, names: Iterable[str]) -> list[str]:
    """Metrics over the lead group's classes, mean over the seeds."""
    seeds = comparison.metrics(method, next(iter(comparison.plan.groups)))
    return [f"{np.mean([x[name] for x in seeds]):.1f}" for name in names]


def metrics_as_published(comparison: Comparison) -> str:
    """Of methods whose authors count otherwise, the metrics as they count them."""
    rows = [
        [method, *mean_metrics(comparison, method, PROTOCOLS[protocol]), protocol]
        for method, protocol in comparison.plan.protocols.items()
        if method in comparison.methods
    ]
    return tabulate(rows, ["as published", *METRICS, "counted"], disable_numparse=True)


def plan_tables(plan: Plan, comparisons: list[Comparison]) -> Iterator[str]:
    """What is printed of a plan; of many data sets that are no curve an overview comes first."""
    if len(comparisons) > 2 and "x" not in plan.datasets[comparisons[0].dataset]:
        yield by_dataset(plan, comparisons)
    if plan.cross_validation:
        yield over_datasets(plan, comparisons)
    for comparison in comparisons:
        yield from tables(comparison)
    if (stored := plan.results / cost.FILE).exists():
        yield cost.table(plan, json.loads(stored.read_text()))


def bounds(comparison: Comparison) -> Iterator[str]:
    """Lines on what no training is needed for, where the plan's results have them."""
    path = comparison.plan.results / f"{comparison.dataset}-bounds.json"
    if path.exists():
        for name, values in json.loads(path.read_text()).items():
            yield f"{name}: " + ", ".join(f"{group} {value:.2f}" for group, value in values.items())


def by_dataset(plan: Plan, comparisons: list[Comparison]) -> str:
    """Mean over the seeds of the lead metric, a column for each data set."""
    lead = next(iter(plan.groups))
    rows = []
    for method in plan.methods:
        if not any(method in c.methods for c in comparisons):
            continue
        means = (c.values(method, lead).mean() if method in c.methods else "" for c in comparisons)
        rows.append([method, *means])
    return tabulate(rows, [lead, *(c.dataset for c in comparisons)], floatfmt=".2f")


def over_datasets(plan: Plan, comparisons: list[Comparison]) -> str:
    """Lead metric over the data sets that have a method and the reference: mean, and difference."""
    lead, rows = next(iter(plan.groups)), []
    for method in plan.methods:
        both = [c for c in comparisons if {method, plan.reference} <= set(c.methods)]
        if not both:
            continue
        values, others = (
            np.array([c.values(name, lead).mean() for c in both])
            for name in (method, plan.reference)
        )
        row = [method, len(both), occlusion_test.mean_sd(values, ".2f")]
        if method != plan.reference:
            interval = _t_interval(values - others)
            row += [
                f"{(values - others).mean():+.2f}",
                "{:+.1f} to {:+.1f}".format(*interval) if interval else "-",
            ]
        rows.append(row)
    headers = ["", "data sets", lead, f"- {plan.reference}", "data sets 95 %"]
    return tabulate(rows, headers, disable_numparse=True)


def by_class(comparison: Comparison) -> str:
    """AP of each class, mean over the seeds."""
    lead = next(iter(comparison.plan.groups.values()))
    rows = []
    for method in comparison.methods:
        cells = [Cell(comparison.dataset, method, s) for s in comparison.seeds[method]]
        aps = [comparison.plan.result(cell)["per_class_AP"] for cell in cells]
        names = lead or list(aps[0])
        rows.append([method, *(np.mean([a[name] for a in aps]) for name in names)])
    return tabulate(rows, ["AP", *names], floatfmt=".1f")


def by_object(comparison: Comparison, path: Path) -> Iterator[str]:
    """Mean AP and recall by size, occlusion and number of the objects.

    A label's group is that of its objects; present labels of other groups are left out. Recall is
    that of all labels at a score of 0.5. Of the methods in the plan's `paired` the difference to
    the reference follows.
    """
    plan, (lead, *_) = comparison.plan, comparison.plan.groups
    for title, groups in read_objects(path, plan.groups[lead]).groups().items():
        parts = [Part(f"{title}: {name}", out) for name, out in groups.items()]
        rows = []
        for method in comparison.methods:
            found = [comparison.metrics(method, lead, part) for part in parts]
            maps = (occlusion_test.mean_sd([x["mAP"] for x in f], ".2f") for f in found)
            recalls = (f"{np.mean([x['OR'] for x in f]):.1f}" for f in found)
            rows.append([method, *maps, *recalls])
        headers = [title, *groups, *(f"recall:\n{name}" for name in groups)]
        yield tabulate(rows, headers, disable_numparse=True)
        rows = [
            [
                method,
                *(
                    _with_images(comparison.difference(method, plan.reference, lead, p))
                    for p in parts
                ),
            ]
            for method in plan.paired
            if method in comparison.methods
        ]
        if rows:
            headers = [f"{title}\n- {plan.reference} (images 95 %)", *groups]
            yield tabulate(rows, headers, disable_numparse=True)


def _with_images(difference: Difference) -> str:
    return "{:+.2f} ({:+.1f} to {:+.1f})".format(difference.mean, *difference.images)


# ---- Plots --------------------------------------------------------------------------------------


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format="png")


def dot_plot(comparisons: list[Comparison], path: Path) -> None:
    """One dot for each seed and a line for the mean, methods from top to bottom."""
    plan = comparisons[0].plan
    methods = [m for m in plan.methods if any(m in c.methods for c in comparisons)]
    size = 4.6 * len(comparisons) + 1.4, 0.42 * len(methods) + 1.2
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(1, len(comparisons), squeeze=False, sharey=True)
    for axis, comparison in zip(axes[0], comparisons):
        for y, method in enumerate(methods):
            if method in comparison.methods:
                values = comparison.values(method, next(iter(plan.groups)))
                axis.plot(values, np.full(len(values), y), "o", color="#2b6cb0", alpha=0.7)
                axis.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color="black")
        axis.set(xlabel=f"{next(iter(plan.groups))}, percent", title=comparison.dataset)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    figure.suptitle(plan.title, wrap=True)
    save_figure(figure, path)


def curve_plot(comparisons: list[Comparison], path: Path, xlabel: str) -> None:
    """Mean over the seeds of each method, and its gain over the reference, against x."""
    plan = comparisons[0].plan
    group = next(iter(plan.groups))
    figure = Figure((10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method in plan.methods:
        known = [c for c in comparisons if method in c.methods]
        if not known:
            continue
        x = [plan.datasets[c.dataset]["x"] for c in known]
        values = [c.values(method, group) for c in known]
        spread = [v.std(ddof=1) if len(v) > 1 else 0 for v in values]
        left.errorbar(x, [v.mean() for v in values], spread, marker="o", capsize=3, label=method)
        gains = [c.difference(method, plan.reference, group) for c in known]
        if method != plan.reference and all(gains):
            middle = np.array([g.mean for g in gains])
            low, high = np.array([g.images for g in gains]).T
            right.errorbar(
                x, middle, [middle - low, high - middle], marker="o", capsize=3, label=method
            )
    right.axhline(0, color="grey", linewidth=0.8)
    left.set(xlabel=xlabel, ylabel=f"{group}, percent (± sd over seeds)")
    right.set(xlabel=xlabel, ylabel=f"gain over {plan.reference}, points (95 %, images)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(plan.title, wrap=True)
    save_figure(figure, path)


def fusion_plot(study: dict, path: Path) -> None:
    """Difference of every fusion and aggregation to the default."""
    _difference_plot(study["mAP"], compare_fusion.DEFAULT, study["dataset"], path)


def weights_plot(study: dict, path: Path) -> None:
    """Difference of every choice of weights to even ones."""
    values = fusion_weights.map_of_runs(study["runs"])
    _difference_plot(values, fusion_weights.EVEN, study["dataset"], path)


def _difference_plot(values: dict[str, list[float]], reference: str, title: str, path: Path):
    """Difference of the mAP of each name to that of one of them, a dot for each run."""
    default, names = np.array(values[reference]), list(values)
    figure = Figure((7.5, 0.32 * len(names) + 1.2), layout="constrained")
    axis = figure.subplots()
    for y, name in enumerate(names):
        difference = np.array(values[name]) - default
        axis.plot(difference, np.full(len(default), y), "o", color="#2b6cb0", alpha=0.7)
        axis.plot([difference.mean()] * 2, [y - 0.3, y + 0.3], color="black")
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set(xlabel="mAP - default, points", title=title)
    save_figure(figure, path)


def occlusion_plot(study: dict, path: Path) -> None:
    """Change of mAP for every part that is made grey, a bar for each model."""
    columns = {
        key: values
        for key, values in occlusion_test.changes(study["runs"]).items()
        if key[1] != occlusion_test.LABEL_SCORE
    }
    parts = [part for part in next(iter(columns.values())) if part != "untouched"]
    figure = Figure((10, 4), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(columns)
    for i, ((model, name), column) in enumerate(columns.items()):
        means = [np.mean(column[part]) for part in parts]
        spreads = [np.std(v, ddof=1) if len(v := column[part]) > 1 else 0 for part in parts]
        label = model if name == "both" else f"{model}: {name}"
        axis.bar(np.arange(len(parts)) + i * width, means, width, yerr=spreads, label=label)
    axis.set_xticks(np.arange(len(parts)) + 0.4 - width / 2, parts)
    axis.set(
        ylabel="change of mAP, points", title=f"Grey parts around the objects, {study['dataset']}"
    )
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def ratio_plot(study: dict, path: Path) -> None:
    """Quartiles of the chosen ratios of each group, 5 to 95 % as whiskers, and the mean."""
    groups = {
        f"{breakdown}: {name}": x
        for breakdown, own in study["groups"].items()
        for name, x in own.items()
        if x["number"] >= FEWEST
    }
    figure = Figure((7.5, 0.26 * len(groups) + 1.2), layout="constrained")
    axis = figure.subplots()
    y = np.arange(len(groups))
    low, first, mean, third, high = (
        [x[key] for x in groups.values()] for key in ("5 %", "25 %", "mean", "75 %", "95 %")
    )
    axis.hlines(y, low, high, color="#2b6cb0")
    axis.hlines(y, first, third, color="#2b6cb0", linewidth=7, alpha=0.4)
    axis.plot(mean, y, "|", color="black", markersize=9)
    axis.set_yticks(y, [f"{name} ({x['number']})" for name, x in groups.items()])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set(xlabel="expansion ratio", title=study["dataset"], xlim=(0.95, max([2, *high]) + 0.05))
    save_figure(figure, path)


def relation_plot(study: dict, path: Path) -> None:
    """Attention between labels beside their co-occurrence, as logarithms: white is none."""
    figure = Figure((11, 5.2), layout="constrained")
    names = range(len(study["classes"])), study["classes"]
    for axis, title in zip(figure.subplots(1, 2), ("attention", "cooccurrence")):
        values = np.array(study[title], float).clip(0.25, 4)
        image = axis.imshow(np.log2(values), cmap="RdBu_r", vmin=-2, vmax=2)
        axis.set_xticks(*names, rotation=90)
        axis.set_yticks(*names)
        axis.set(title=f"{title} of the row's label to the column's")
    figure.colorbar(image, ax=figure.axes, label="times that of all labels, powers of 2")
    save_figure(figure, path)


# Of a stored file: how it is printed and drawn.
STUDIES: dict[str, tuple[Callable[[dict], str], Callable[[dict, Path], None]]] = {
    "weights": (lambda study: fusion_weights.to_text(study["runs"]), weights_plot),
    "fusion": (lambda study: compare_fusion.to_text(study["mAP"]), fusion_plot),
    "occlusion": (lambda study: occlusion_test.to_text(study["runs"]), occlusion_plot),
    "ratios": (lambda study: context_ratios.to_text(study["groups"]), ratio_plot),
    "relations": (label_relations.to_text, relation_plot),
}


def plot(plan: Plan, comparisons: list[Comparison], folder: Path) -> None:
    """The plot of a plan: a curve where its data sets have an x."""
    path = folder / f"{plan.path.stem}.png"
    if all("x" in dataset for dataset in plan.datasets.values()):
        curve_plot(comparisons, path, plan.xlabel)
    else:
        dot_plot(comparisons, path)


# ---- Running a cell again -----------------------------------------------------------------------


def run_again(plan: Plan, cell: Cell, work: Path) -> bool:
    """Train a cell again beside the stored ones; is it where one more seed would be?

    That is the 95 % prediction interval of one value from the stored seeds, Student's t.
    """
    group = next(iter(plan.groups))
    stored = Comparison(plan, cell.dataset).values(cell.method, group)
    if len(stored) < 2:
        raise ValueError(f"{cell}: {len(stored)} stored seeds give no spread to compare with")
    copy = replace(plan, path=work / "again" / plan.path.name)
    with tqdm(total=1, desc=str(cell), bar_format=LAYOUT) as bar:
        value = run_cell(copy, cell, work, bar)["metrics"][group]
    scale = student_t.ppf(0.975, len(stored) - 1) * (1 + 1 / len(stored)) ** 0.5
    half = scale * stored.std(ddof=1)
    low, high = stored.mean() - half, stored.mean() + half
    print(f"{cell}: {group} {value:.2f}; stored seeds {', '.join(f'{v:.2f}' for v in stored)}")
    inside = low <= value <= high
    print(
        f"{'inside' if inside else 'OUTSIDE'} the 95 % prediction interval {low:.2f} to {high:.2f}"
    )
    return inside


def outputs(args: argparse.Namespace) -> Iterator[Path]:
    """The files that a command writes."""
    if args.objects:
        yield args.results / f"{'+'.join(sorted(args.objects))}-objects.npz"
        return
    for folder, images in folders(args):
        yield folder / "evidence.json"
        for pattern in ("*.yaml", *(f"{kind}*.json" for kind in STUDIES)):
            for path in folder.glob(pattern):
                yield from (images / f"{path.stem}.png", path.with_suffix(".txt"))


def folders(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Each folder that has plans, and the one of its plots; that of the main plans comes last."""
    found = sorted({path.parent for path in args.results.rglob("*.yaml")}, reverse=True)
    return [(folder, args.images / folder.relative_to(args.results)) for folder in found]


def publish(title: str, tables: Iterable[str], path: Path) -> None:
    """Print the tables of a plan or a study, and keep them beside it."""
    text = "\n\n".join([f"{title}   ({path.name})", *tables]) + "\n"
    print(f"\n{'=' * 100}\n{text}")
    with replacing(path.with_suffix(".txt"), "w") as file:
        file.write(text)


def fill(document: str) -> str:
    """A document with the tables that it quotes as they are now."""

    def table(match: re.Match) -> str:
        tables = (HERE.parent / match[2]).read_text().rstrip().split("\n\n")
        return match[1] + tables[int(match[3])]

    return QUOTED.sub(table, document)


def fill_documents(docs: Path) -> None:
    """Put the tables into the documents of a folder."""
    for path in docs.glob("*.md"):
        before = path.read_text()
        if (after := fill(before)) != before:
            with replacing(path, "w") as file:
                file.write(after)


def draw_folder(folder: Path, plans: list[Plan], images: Path) -> None:
    """Tables, plots and values of the plans of a folder."""
    images.mkdir(parents=True, exist_ok=True)
    evidence = {}
    for plan in plans:
        path = plan.path
        comparisons = [c for c in (Comparison(plan, d) for d in plan.datasets) if c.methods]
        if not comparisons:
            continue
        publish(plan.title, plan_tables(plan, comparisons), path)
        for comparison in comparisons:
            name = path.stem if len(plan.datasets) == 1 else f"{path.stem}/{comparison.dataset}"
            evidence[name] = {
                method: {g: comparison.values(method, g).round(4).tolist() for g in plan.groups}
                for method in comparison.methods
            }
        plot(plan, comparisons, images)
    for kind, (to_text, draw) in STUDIES.items():
        for path in sorted(folder.glob(f"{kind}*.json")):
            study = json.loads(path.read_text())
            publish(study["dataset"], [to_text(study)], path)
            draw(study, images / f"{path.stem}.png")
    write_json(folder / "evidence.json", evidence)


def main(arguments: list[str] | None = None) -> None:
    """Prints everything that is stored, and draws it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the plans, or of their folders"
    )
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the plots")
    parser.add_argument("--docs", type=Path, default=DOCS, help="documents that quote tables")
    parser.add_argument("--overwrite", action="store_true", help="plots and values that are there")
    parser.add_argument(
        "--objects", metavar="DATASET", nargs="+", help="store their sizes and occlusion, and end"
    )
    parser.add_argument(
        "--again", nargs=2, metavar=("PLAN", "CELL"), help="run a cell again, compare, and end"
    )
    parser.add_argument("--work", type=Path, default=Path("output/compare"), help="for --again")
    args = parser.parse_args(arguments)
    if args.again:
        plan = plan_or_error(Path(args.again[0]), parser.error)
        cells = {str(cell): cell for cell in plan.cells()}
        if args.again[1] not in cells:
            parser.error(f"{args.again[0]} has no cell {args.again[1]}; it has {', '.join(cells)}")
        raise SystemExit(0 if run_again(plan, cells[args.again[1]], args.work) else 1)
    for path in outputs(args):
        if path.exists() and not args.overwrite:
            parser.error(f"{path} is there already: add --overwrite, or name another folder")
    if args.objects:
        return write_objects(args.objects, *outputs(args))
    plans = [plan_or_error(path, parser.error) for path in sorted(args.results.rglob("*.yaml"))]
    if not plans:
        parser.error(f"{args.results} has no plan (*.yaml); {REMEDY}")
    for folder, images in folders(args):
        draw_folder(folder, [plan for plan in plans if plan.path.parent == folder], images)
    fill_documents(args.docs)


if __name__ == "__main__":
    main()
