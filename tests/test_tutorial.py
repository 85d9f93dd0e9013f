"""Every line of docs/tutorial.md, run as it is written but for the number of iterations."""

import json
import os
import re
import shlex

import numpy as np
import pytest
from conftest import REPO, scnet
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

CATEGORIES = ("red", "green", "blue")


def commands():
    """The commands, each a list of words, with the variables that are exported before them."""
    text = (REPO / "docs" / "tutorial.md").read_text()
    lines = "".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    variables = {"ITERATIONS": "2"}
    for line in lines.splitlines():
        if name := re.match(r"export (\w+)=", line):
            assert name[1] in variables
        else:
            words = [re.sub(r"\$(\w+)", lambda m: variables[m[1]], w) for w in shlex.split(line)]
            assert words[0] == "scnet"
            yield words[1:]


def draw(folder, name, count, rng):
    """Images of one coloured rectangle, and their boxes in COCO format."""
    images, annotations = [], []
    for i in range(count):
        pixels = np.full((48, 64, 3), 128, np.uint8)
        x, y = rng.integers(0, 30, 2).tolist()
        pixels[y : y + 16, x : x + 20, i % 3] = 255
        file = f"{name}_{i}.png"
        Image.fromarray(pixels).save(folder / file)
        images.append({"id": i, "file_name": file, "width": 64, "height": 48})
        annotations.append(
            {"id": i, "image_id": i, "category_id": i % 3 + 1, "bbox": [x, y, 20, 16],
             "area": 320, "iscrowd": 0}
        )  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def export(tmp_path, monkeypatch):
    """The folder that the tutorial begins in."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("images", "photos"):
        (tmp_path / folder).mkdir()
    for name, count in (("train", 9), ("val", 3)):
        (tmp_path / f"{name}.json").write_text(
            json.dumps(draw(tmp_path / "images", name, count, rng))
        )
    draw(tmp_path / "photos", "photo", 2, rng)
    return tmp_path


def test_every_line_of_the_tutorial_runs_and_leaves_what_it_says(export):
    for words in commands():
        assert scnet(*words) == 0, words
        for name in {"my_train", "my_val"} & set(DatasetCatalog):  # each line is a process there
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    assert {"labels.csv", "pictures", "my_model", "run"} <= set(os.listdir(export))
    assert {"report.html", "thresholds.json", "model_final.pth"} <= set(os.listdir(export / "run"))
    assert len(os.listdir(export / "pictures")) == 2 + 1  # and labels.jsonl
    assert (export / "labels.csv").read_text().splitlines()[0].startswith("file,width,height,label")


def test_registered_data_that_no_key_names_are_refused_before_training(export, capsys):
    config = ("--config-file", "VOC-MultiLabel/scnet_EfficientNet_Lite0_FPN_256px")
    own = ("--register-coco", "forgotten", "train.json", "images/")
    assert scnet("train", *config, "--output", "run", *own) == 2
    assert "forgotten: registered, but neither trained nor evaluated" in capsys.readouterr().err
