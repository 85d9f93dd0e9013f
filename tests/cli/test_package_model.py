"""`scnet models package`: a run becomes a model folder that any program loads."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

from scnet_d2 import load_config, model_zoo
from scnet_d2.checkpoint import BrokenCheckpointError, CheckpointError, SCNetCheckpointer
from scnet_d2.cli import package
from scnet_d2.data.context_scenes import CLASSES, SceneConfig, generate, render_scene
from scnet_d2.evaluation import save_thresholds
from scnet_d2.evaluation.score_files import FILE_NAME, ScoreTable, write_scores
from scnet_d2.inference import SCNetPredictor
from scnet_d2.inference.export import write_safetensors
from scnet_d2.outputs import write_image

import numpy as np
import pytest
import torch
from conftest import CONFIGS, scnet, small_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from safetensors.torch import load_file

PACKAGE = ("models", "package")
DATA = ("package_train", "package_test")
TIMM = "VOC-MultiLabel/scnet_EfficientNet_Lite0_FPN_256px.yaml"


def scenes(count=3) -> list[np.ndarray]:
    return [render_scene(SceneConfig(), "test", i)[0] for i in range(10, 10 + count)]


def save_run(folder: Path, cfg, names) -> Path:
    """A run of random weights whose scores lie all over [0, 1]."""
    folder.mkdir(exist_ok=True)
    cfg.merge_from_list(["DATASETS.CLASS_NAMES", list(names), "OUTPUT_DIR", str(folder)])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = DATA[:1], DATA[1:]
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("label_score.bias", "label_score.weight")):
            torch.nn.init.normal_(parameter, std=1.0 if parameter.ndim == 1 else 2e-3)
    SCNetCheckpointer(model, str(folder), class_names=names).save("model_final")
    cfg.MODEL.WEIGHTS = "/home/somebody/R-18.pkl"
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A datasets root with a few context scenes."""
    root = tmp_path_factory.mktemp("datasets")
    generate(str(root), SceneConfig(sizes=(12, 1, 4)))
    return root / "context_scenes"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on GPUs, with scores of two test images."""
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, small_config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0), CLASSES)
    cfg = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(cfg.replace("DEVICE: cpu", "DEVICE: cuda"))
    labels = np.eye(2, len(CLASSES), dtype=bool)
    table = ScoreTable(0.5 * labels, labels, np.zeros_like(labels), list(CLASSES))
    (folder / "inference" / DATA[1]).mkdir(parents=True)
    write_scores(folder / "inference" / DATA[1] / FILE_NAME, table)
    return folder


@pytest.fixture(scope="module")
def packaged(run, root, tmp_path_factory) -> Path:
    """The run's model folder, made with its data at hand."""
    output = tmp_path_factory.mktemp("zoo") / "tiny"
    data = [DATA[0], str(root / "annotations" / "train.json"), str(root / "images" / "train")]
    try:
        assert scnet(*PACKAGE, run, "--output", output, "--register-coco", *data) == 0
    finally:
        DatasetCatalog.pop(DATA[0])
        MetadataCatalog.pop(DATA[0])
    return output


def test_the_folder_scores_as_the_run_with_weights_of_half_the_size(run, packaged):
    assert sorted(os.listdir(packaged)) == ["README.md", "config.yaml", "model.safetensors"]
    before, after = (SCNetPredictor.from_pretrained(folder, "cpu") for folder in (run, packaged))
    dtypes = {x.dtype for x in load_file(packaged / "model.safetensors").values()}
    assert dtypes == {torch.float16, torch.float32, torch.int64}
    sizes = [os.path.getsize(x) for x in (packaged / "model.safetensors", run / "model_final.pth")]
    assert sizes[0] < 0.52 * sizes[1]
    assert {x.dtype for x in after.model.state_dict().values()} == {torch.float32, torch.int64}
    scores = [[p(image)["image_scores"] for image in scenes()] for p in (before, after)]
    expected, found = map(torch.stack, scores)  # (images, C)
    assert (expected.amax(dim=1) - expected.amin(dim=1)).min() > 0.2
    assert (expected.amax(dim=0) - expected.amin(dim=0)).max() > 0.02
    differences = (expected - found).abs()
    assert 0 < differences.median() < 1e-3
    assert differences.max() < 0.02  # where the RPN takes another one of two boxes
    assert after.class_names == list(CLASSES)


def test_a_timm_model_loads_without_data_network_or_imagenet_weights(tmp_path, monkeypatch):
    names = [f"c{i}" for i in range(20)]
    run = save_run(tmp_path / "run", load_config(CONFIGS / TIMM, ["MODEL.DEVICE", "cpu"]), names)
    assert scnet(*PACKAGE, run, "--output", tmp_path / "tiny") == 0
    shutil.rmtree(run)
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("network"))
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: pytest.fail("data"))
    predictor = SCNetPredictor.from_pretrained(tmp_path / "tiny", "cpu")
    assert predictor(scenes(1)[0])["image_scores"].shape == (20,)
    assert predictor.class_names == names


def test_nothing_of_the_machine_is_left_in_the_folder(run, packaged):
    for file in packaged.iterdir():
        content = file.read_bytes()
        for word in ("/home", "somebody", str(run), "DEVICE", "cuda", "OUTPUT_DIR", "SOLVER"):
            assert word.encode() not in content, (file, word)


def test_the_card_has_the_images_of_training_and_test_with_each_label(root, packaged):
    content = json.loads((root / "annotations" / "train.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    present = {(a["image_id"], names[a["category_id"]]) for a in content["annotations"]}
    card = (packaged / "README.md").read_text()
    for i, name in enumerate(CLASSES):
        count = sum(label == name for _, label in present)
        line = next(s for s in card.split("\n") if s.startswith(f"| {name} "))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells == [name, "100.0" if i < 2 else "–", str(int(i < 2)), str(count)]


def test_without_data_and_scores_the_card_says_less(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("inference"))
    assert scnet(*PACKAGE, tmp_path / "run", "--output", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert f"lacks results: no {tmp_path / 'run' / 'inference' / DATA[1] / FILE_NAME}" in said
    assert f"training images: {DATA[0]} is not registered, see --register-coco\n" in said
    assert "in percent" not in (tmp_path / "out" / "README.md").read_text()


def test_thresholds_of_the_classes_go_with_the_model(run, tmp_path, monkeypatch):
    thresholds = np.linspace(0.1, 0.9, len(CLASSES))
    save_thresholds(tmp_path / "tuned.json", thresholds, CLASSES, source="val")
    opts = ["--opts", "TEST.LABEL_THRESHOLDS", str(tmp_path / "tuned.json")]
    assert scnet(*PACKAGE, run, "--output", tmp_path / "out", *opts) == 0
    (tmp_path / "tuned.json").unlink()
    monkeypatch.chdir(tmp_path)
    found = SCNetPredictor.from_pretrained("out", "cpu").thresholds
    assert found == pytest.approx(thresholds)


def test_nothing_is_written_over_and_what_scores_otherwise_is_not_kept(
    run, packaged, tmp_path, monkeypatch, capsys
):
    assert scnet(*PACKAGE, run / "config.yaml", "--output", tmp_path / "out") == 2
    assert "config.yaml is no folder: give the OUTPUT_DIR of a run" in capsys.readouterr().err
    before = {file: file.stat() for file in packaged.iterdir()}
    assert scnet(*PACKAGE, run, "--output", packaged) == 2
    assert "is not empty: choose another folder" in capsys.readouterr().err
    assert {file: file.stat() for file in packaged.iterdir()} == before
    monkeypatch.setattr(package, "TOLERANCE", 0)
    assert scnet(*PACKAGE, run, "--output", tmp_path / "out") == 1
    assert re.search("Not kept: .*; use --dtype float32", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(package, "score_differences", lambda *_: [float("nan")])
        assert scnet(*PACKAGE, run, "--output", tmp_path / "out") == 1
    assert "nan, more than 0; the weights may be of a training that di" in capsys.readouterr().err
    assert scnet(*PACKAGE, run, "--output", tmp_path / "out", "--dtype", "float32") == 0
    assert "differ by 0.0e+00 from the run's (median), 0.0e+00 (most)" in capsys.readouterr().out


def test_norms_biases_and_values_that_float16_cannot_hold_stay_in_float32(packaged, tmp_path):
    predictor = SCNetPredictor.from_pretrained(packaged, "cpu")
    with torch.no_grad():
        predictor.model.backbone.bottom_up.stem.conv1.weight[0, 0, 0, 0] = 1e5
    write_safetensors(predictor, tmp_path / "m.safetensors", half=True)
    stored, state = load_file(tmp_path / "m.safetensors"), predictor.model.state_dict()
    whole = {name for name, x in stored.items() if x.ndim > 1 and x.dtype != torch.float16}
    assert whole == {"backbone.bottom_up.stem.conv1.weight"}
    small = {name for name, x in state.items() if x.ndim < 2}
    assert all(torch.equal(stored[name], state[name]) for name in whole | small)


def test_a_folder_whose_files_do_not_belong_together_is_refused(packaged, tmp_path):
    shutil.copytree(packaged, tmp_path / "tiny")
    config, weights = tmp_path / "tiny" / "config.yaml", tmp_path / "tiny" / "model.safetensors"
    text = config.read_text()
    config.write_text(text.replace(f"- {CLASSES[1]}\n", "- other\n"))
    with pytest.raises(CheckpointError, match=f"class 1 is '{CLASSES[1]}' in .* and 'other' in"):
        SCNetPredictor.from_pretrained(tmp_path / "tiny")
    config.write_text(text)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors cannot be read .* again"):
        SCNetPredictor.from_pretrained(tmp_path / "tiny")


def test_programs_take_the_name_of_a_shipped_model(packaged, tmp_path, monkeypatch):
    monkeypatch.setattr(model_zoo, "FOLDER", packaged.parent)
    image = scenes(1)[0]
    write_image(tmp_path / "scene.png", image)
    scores = SCNetPredictor.from_pretrained("tiny", "cpu")(image)["image_scores"].tolist()
    files = [str(tmp_path / "scene.png"), "--output", str(tmp_path / "labels.jsonl")]
    assert scnet("tag", *files, "--model", "tiny", "--threshold", 0, "--workers", 0) == 0
    options = ["--model", "tiny", "--output", tmp_path / "out", "--threshold", 0]
    assert scnet("demo", files[0], *options) == 0
    for lines in (tmp_path / "labels.jsonl", tmp_path / "out" / "labels.jsonl"):
        found = {x["label"]: x["score"] for x in json.loads(lines.read_text())["labels"]}
        assert [found[name] for name in CLASSES] == pytest.approx(scores, abs=2e-4)
