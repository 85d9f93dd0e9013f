"""train_net.py and `scnet demo` as a user runs them, on a small data set in COCO format."""

import json
import os
import re
import subprocess
import sys
import tempfile

from scnet_command.arguments import train_net_parser
from scnet_d2.cli import train
from scnet_d2.data.context_scenes import CLASSES, SceneConfig, generate
from scnet_d2.inference import SCNetPredictor, describe_labels

import cv2
import numpy as np
import processes
import pytest
import torch
from conftest import REPO, load_config, scnet
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor

CONFIG = "configs/quick_schedules/scnet_R_18_FPN_instant_test.yaml"
SMALL = ("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "DATALOADER.NUM_WORKERS", "0")


def run(*command, root, status=0, popen=processes.Program) -> str:
    """Output of a Python program of the repository in a process of its own.

    The default of `popen` spares it the imports; each program also runs once without.
    """
    environment = os.environ | {"DETECTRON2_DATASETS": str(root), "PYTHONWARNINGS": "ignore"}
    with tempfile.NamedTemporaryFile("w+") as output:
        process = popen(
            [sys.executable, *map(str, command)], cwd=REPO, env=environment, stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        process.wait(280)
        output.seek(0)
        text = output.read()
    assert process.returncode == status, text[-4000:]
    return text


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A datasets root with a few context scenes."""
    root = tmp_path_factory.mktemp("datasets")
    generate(str(root), SceneConfig(sizes=(12, 4, 6)))
    return root


def own_data(root, *splits, prefix="own"):
    """Command-line arguments that register these splits as the user's own data."""
    scenes = root / "context_scenes"
    for split in splits:
        yield from ("--register-coco", f"{prefix}_{split}")
        yield from (scenes / "annotations" / f"{split}.json", scenes / "images" / split)


def run_train_net(root, output, *args, **options):
    splits = ("train", "val", "test")
    opts = ["OUTPUT_DIR", output, *SMALL, "SOLVER.IMS_PER_BATCH", 2]
    for key, split in zip(("TRAIN", "VAL", "TEST"), splits):
        opts += [f"DATASETS.{key}", f"('own_{split}',)"]
    flags = [a for a in args if str(a).startswith("--")]
    keys = [a for a in args if not str(a).startswith("--")]
    return run(
        "train_net.py", "--config-file", CONFIG, *own_data(root, *splits), *flags, *opts, *keys,
        root=root, **options,
    )  # fmt: skip


def printed_metrics(text) -> list[str]:
    """The last results that Detectron2 printed in its copy-and-paste form."""
    return re.findall(r"copypaste: (.*)", text)[-2:]


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """Folder and output of a training of four iterations on registered data."""
    output = tmp_path_factory.mktemp("run")
    keys = ("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2)
    return output, run_train_net(root, output, *keys, popen=subprocess.Popen)


def test_training_on_registered_data_leaves_checkpoints_metrics_and_a_table(trained):
    output, text = trained
    names = {p.name for p in output.iterdir()}
    assert {"model_best.pth", "model_final.pth", "last_checkpoint", "metrics.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    written = {key for line in lines for key in line}
    assert {"total_loss", "loss_context_label", "multilabel/mAP", "val/mAP"} <= written
    assert re.search(r"mAP +CP +CR +CF1 +OP +OR +OF1", text)
    assert "class prevalence" in text
    assert (output / "inference" / "own_test" / "multilabel_scores.npz").exists()


def test_evaluating_the_checkpoint_prints_the_same_numbers(trained, root):
    output, text = trained
    config = (output / "config.yaml").read_bytes()
    again = run(  # the training data are not registered: they are not needed
        "-m", "scnet_command", "eval", "--model", output, *own_data(root, "test"), root=root,
    )  # fmt: skip
    assert printed_metrics(again) == printed_metrics(text) != []
    assert (output / "config.yaml").read_bytes() == config  # how it was trained


def test_an_error_of_the_users_ends_train_net_in_a_sentence(root):
    text = run("train_net.py", "--config-file", CONFIG, "MODEL.WEIGTHS", "x", root=root, status=2)
    (line,) = (x for x in text.splitlines() if x)
    assert line.startswith("train_net.py: error: command line: there is no key MODEL.WEIGTHS; did")


def test_resume_goes_on_where_the_run_ended(trained, root):
    output, _ = trained
    before = torch.load(output / "model_final.pth", weights_only=False)["iteration"]
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    keys = ("SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 0)
    text = run_train_net(root, output, "--resume", *keys)
    assert before == 3
    assert "Starting training from iteration 4" in text
    assert torch.load(output / "model_final.pth", weights_only=False)["iteration"] == 5


def test_a_folder_with_another_run_is_not_overwritten(trained):
    output, _ = trained
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    args = ["--config-file", CONFIG, "OUTPUT_DIR", str(output)]
    with pytest.raises(FileExistsError, match="holds another run, or weights; continue a run with"):
        train.main(train_net_parser().parse_args(args))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_wrong_number_of_classes_stops_before_training(root, tmp_path):
    keys = ("MODEL.ROI_HEADS.NUM_CLASSES", 5, "DATASETS.TRAIN", "('three_train',)")
    data = own_data(root, "train", prefix="three")
    args = ["--config-file", CONFIG, *data, "OUTPUT_DIR", tmp_path / "run", *keys]
    try:
        with pytest.raises(ValueError, match="data set three_train has 14 classes and the model 5"):
            train.main(train_net_parser().parse_args(map(str, args)))
    finally:
        DatasetCatalog.pop("three_train")
    assert not list((tmp_path / "run").glob("*.pth"))


def test_demo_draws_pictures_and_writes_json_lines(trained, root, tmp_path):
    output, _ = trained
    images = sorted((root / "context_scenes" / "images" / "test").glob("*.png"))[:2]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    command = [
        "-m", "scnet_command", "demo", *images, broken, "--model", output,
        "--output", tmp_path / "out", "--threshold", 0.0,
    ]  # fmt: skip
    text = run(*command, root=root, status=1, popen=subprocess.Popen)
    assert "1 of 3 images could not be read" in text
    lines = [json.loads(s) for s in (tmp_path / "out" / "labels.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(f) for f in (*images, broken)]
    assert "error" in lines[2]
    for line in lines[:2]:
        assert sorted(x["label"] for x in line["labels"]) == sorted(CLASSES)
    pictures = [cv2.imread(str(p)) for p in sorted((tmp_path / "out").glob("*.png"))]
    assert [closest(picture, images) for picture in pictures] == list(images)


def closest(picture, images):
    """The image that the left part of a drawn picture shows."""
    shown = cv2.resize(picture[:, :704], (16, 16), interpolation=cv2.INTER_AREA).astype(float)
    sizes = [cv2.resize(cv2.imread(str(x)), (16, 16), interpolation=cv2.INTER_AREA) for x in images]
    return images[np.argmin([np.abs(shown - x).mean() for x in sizes])]


def test_demo_refuses_a_folder_that_is_in_use(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert scnet("demo", "b", "--model", "a", "--output", tmp_path) == 2
    assert "is not empty: choose another folder" in capsys.readouterr().err


def test_predictor_takes_one_image_or_a_list_and_agrees_with_detectron2s(trained, root):
    output, _ = trained
    weights = str(output / "model_final.pth")
    cfg = load_config(CONFIG.removeprefix("configs/"), *SMALL)
    cfg.MODEL.WEIGHTS = weights
    predictor, stock = SCNetPredictor(cfg), DefaultPredictor(cfg)
    files = sorted((root / "context_scenes" / "images" / "test").glob("*.png"))[:2]
    images = [read_image(str(f), format="BGR") for f in files]
    several = predictor(images)
    for image, output in zip(images, several, strict=True):
        one, expected = predictor(image), stock(image)
        assert torch.equal(one["image_scores"], expected["image_scores"])
        torch.testing.assert_close(output["image_scores"], one["image_scores"], atol=2e-2, rtol=0)
    labels = describe_labels(several[0], CLASSES)
    assert [x["score"] for x in labels] == sorted((x["score"] for x in labels), reverse=True)
    with pytest.raises(ValueError, match="uint8 BGR image"):
        predictor(images[0].astype("float32"))


def test_predictor_refuses_random_weights():
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        SCNetPredictor(load_config(CONFIG.removeprefix("configs/")))


def test_real_photographs_train_evaluate_and_are_scored_as_detections(real_data_root, tmp_path):
    text = run(
        "train_net.py", "--config-file", "configs/quick_schedules/scnet_R_18_FPN_overfit_test.yaml",
        "OUTPUT_DIR", tmp_path, *SMALL, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2,
        "MODEL.RPN.POST_NMS_TOPK_TEST", 10, "INPUT.MIN_SIZE_TEST", 96, "TEST.DETECTION_AP", True,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
        root=real_data_root,
    )  # fmt: skip
    assert "Evaluation results for bbox" in text
    assert re.search(r"mAP +CP +CR +CF1 +OP +OR +OF1", text)
