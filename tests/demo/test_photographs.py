"""Photographs of the demo: their files, their licences, and what the shipped model says of them."""

import ast
import json
from importlib.util import find_spec
from pathlib import Path

from scnet_d2.checkpoint import SCNetCheckpointer
from scnet_d2.cli import demo
from scnet_d2.data import read_image
from scnet_d2.inference import SCNetPredictor
from scnet_d2.modeling.test_time_augmentation import build_tta

import photographs
import pytest
import torch
from conftest import scnet
from detectron2.modeling import build_model

needs_skimage = pytest.mark.skipif(find_spec("skimage") is None, reason="no scikit-image")


@needs_skimage
def test_photographs_are_copied_with_their_licences_and_nothing_is_written_over(tmp_path, capsys):
    folder = tmp_path / "photographs"
    assert photographs.main([str(folder)]) == 0
    names = [x.file for x in photographs.PHOTOGRAPHS]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*names, "LICENSES.txt"])
    lines = (folder / "LICENSES.txt").read_text().splitlines()
    assert lines[0] == "chelsea.png: a cat, by Stefan van der Walt; CC0; scikit-image"
    assert [line.partition(":")[0] for line in lines] == names
    files = list(demo.find_files([str(folder)]))  # LICENSES.txt is no image
    assert sorted(Path(f).name for f in files) == sorted(names)
    for file in files:
        assert min(read_image(file, format="BGR").shape[:2]) >= 300
    with pytest.raises(SystemExit):
        photographs.main([str(folder)])
    assert "is not empty: choose another folder" in capsys.readouterr().err


@needs_skimage
@pytest.mark.parametrize("photograph", photographs.PHOTOGRAPHS, ids=lambda x: x.file)
def test_the_package_states_the_same_licence_and_author(photograph):
    data = Path(find_spec("skimage").origin).parent / "data"
    functions = ast.parse((data / "_fetchers.py").read_text()).body
    name = photograph.file.partition(".")[0]
    (function,) = (f for f in functions if getattr(f, "name", "") == name)
    stated = " ".join(ast.get_docstring(function).split())
    for words in (photograph.licence, photograph.author):
        assert words in stated
    assert photograph.source == "scikit-image" or photograph.source in stated


def test_without_scikit_image_the_remedy_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    assert photographs.main([str(tmp_path / "new")]) == 1
    assert "pip install scikit-image" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# ---- The model that comes with the package ------------------------------------------------------

MODEL = "scnet_lite_voc"
SHOWN = {"astronaut.png": ["person"], "chelsea.png": ["cat"], "coffee.png": [], "rocket.jpg": []}


@needs_skimage
def test_the_shipped_model_tags_what_the_photographs_show_and_is_averaged_over_views(tmp_path):
    copied, lines = tmp_path / "photographs", tmp_path / "labels.jsonl"
    photographs.copy_photographs(copied)
    assert scnet("tag", copied, "--model", MODEL, "--output", lines) == 0
    records = {Path(r["file"]).name: r["labels"] for r in map(json.loads, lines.open())}
    assert {file: [x["label"] for x in labels] for file, labels in records.items()} == SHOWN
    predictor = SCNetPredictor.from_pretrained(MODEL, "cpu")
    image = read_image(str(copied / "chelsea.png"), format=predictor.input_format)
    pixels = torch.as_tensor(image.transpose(2, 0, 1).copy())
    inputs = {"image": pixels, "height": image.shape[0], "width": image.shape[1]}
    cfg = predictor.cfg.clone()
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (240, 288), "TEST.AUG.MAX_SIZE", 384])
    with torch.no_grad():
        (output,) = build_tta(cfg, predictor.model)([inputs])
    assert output["image_scores"][predictor.class_names.index("cat")] > 0.9


def test_training_may_start_from_the_shipped_model():
    predictor = SCNetPredictor.from_pretrained(MODEL, "cpu")
    cfg = predictor.cfg.clone()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    model = build_model(cfg)
    SCNetCheckpointer(model).load(f"scnet://{MODEL}")
    wanted, found = predictor.model.state_dict(), model.state_dict()
    left = {name for name, x in found.items() if not torch.equal(x, wanted[name])}
    # layers that give labels: of DELTA those of the image and of its regions
    labels = (".label_score.", ".region_score.2.")
    assert left == {name for name in found if any(layer in name for layer in labels)}
