#!/usr/bin/env python
"""Scenes with companions in which one method names the object wrongly and another does not.

From stored scores: the scenes are drawn again. The label of the pair with the higher score is what
a method names. Prints how many scenes there are, and how many the other way round.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scnet_d2.data.context_scenes import COMPANION_OF, SceneConfig, render_scene
from scnet_d2.evaluation import ScoreTable, read_scores
from scnet_d2.outputs import new_file, write_image

import cv2
import numpy as np
from compare import Cell, read_plan

SCALE, COLUMNS, LINE = 2, 3, 18  # enlargement; pictures in a row; px of a line of text
PAIR = list(COMPANION_OF)


def margins(table: ScoreTable) -> np.ndarray:
    """(N,) score of the right label of the pair - that of the other; nan where it has none."""
    pair = table.of_classes(PAIR)
    sign = np.where(pair.labels[:, 0], 1.0, -1.0)
    one = pair.labels.sum(axis=1) == 1
    return np.where(one, sign * (pair.scores[:, 0] - pair.scores[:, 1]), np.nan)


def picture(config: SceneConfig, index: int, lines: list[str]) -> np.ndarray:
    """A test scene, enlarged, with the pair and its companions in boxes, above lines of text."""
    image, scene = render_scene(config, "test", index)
    side = SCALE * 160
    canvas = np.full((side + LINE * len(lines) + 6, side + 8, 3), 255, np.uint8)
    large = cv2.resize(image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    for a in scene["annotations"]:
        if a["name"] in (*COMPANION_OF, *COMPANION_OF.values()):
            x, y, w, h = (SCALE * v for v in a["bbox"])
            colour = (40, 220, 255) if a["name"] in COMPANION_OF else (255, 255, 255)
            cv2.rectangle(large, (x - 1, y - 1), (x + w, y + h), colour, 1)
            _write(large, a["name"], (max(0, min(x, large.shape[1] - 56)), max(12, y - 4)), colour)
    canvas[: large.shape[0], : large.shape[1]] = large
    for i, line in enumerate(lines):
        _write(canvas, line, (2, side + LINE * (i + 1) - 4), (0, 0, 0))
    return canvas


def _write(image: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, ...]) -> None:
    """Onto an image (H, W, 3); light letters get a dark rim."""
    font = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    if any(colour):
        cv2.putText(image, text, at, *font, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(image, text, at, *font, colour, 1, cv2.LINE_AA)


def main(arguments: list[str] | None = None) -> None:
    """Prints the numbers of scenes; writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, help="YAML file, see experiments/results/")
    parser.add_argument("wrong", help="the method that names the object wrongly")
    parser.add_argument("right", help="the method that does not")
    parser.add_argument("output", type=new_file, help="new JPEG or PNG file")
    parser.add_argument("--seed", type=int, default=1, help="of both cells (%(default)s)")
    parser.add_argument("--number", type=int, default=6, help="of scenes (%(default)s)")
    args = parser.parse_args(arguments)
    plan = read_plan(args.plan)
    (dataset,) = plan.datasets
    config = SceneConfig(**plan.datasets[dataset]["scenes"])
    methods = {"wrong": args.wrong, "right": args.right}
    tables = {
        role: read_scores(plan.results / f"{Cell(dataset, method, args.seed)}.npz")
        for role, method in methods.items()
    }
    wrong, right = (margins(tables[role]) for role in methods)
    chosen = np.flatnonzero((wrong < 0) & (right > 0))
    back = np.count_nonzero((wrong > 0) & (right < 0))
    print(
        f"{np.isfinite(wrong).sum()} scenes; {args.wrong} wrong and {args.right} right in "
        f"{len(chosen)}, the other way round in {back}"
    )
    chosen = chosen[(right - wrong)[chosen].argsort()[::-1][: args.number]]
    tiles = []
    for i in chosen:
        lines = []
        for role, method in methods.items():
            scores = tables[role].of_classes(PAIR).scores[i]
            lines.append(f"{method}: " + ", ".join(f"{n} {s:.2f}" for n, s in zip(PAIR, scores)))
        tiles.append(picture(config, int(tables["wrong"].image_ids[i]) - 1, lines))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    write_image(args.output, np.vstack(rows))


if __name__ == "__main__":
    main()
