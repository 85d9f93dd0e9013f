"""load_run: which config, weights and device a program gets."""

import pytest
import torch
from conftest import small_config

from scnet_d2 import ConfigError
from scnet_d2.inference import load_run


@pytest.fixture
def folder(tmp_path):
    """A run of a GPU, with AMP; its config names the weights that training began with."""
    cfg = small_config("DATASETS.CLASS_NAMES", [f"c{i}" for i in range(14)], device="cuda")
    cfg.merge_from_list(["MODEL.WEIGHTS", "imagenet.pkl", "SOLVER.AMP.ENABLED", True])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    for name in ("model_final.pth", "other.pth"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_stands_for_its_config_and_final_weights(folder):
    assert str(folder / "model_final.pth") == load_run(folder).MODEL.WEIGHTS
    assert load_run(folder, opts=["INPUT.FORMAT", "RGB"]).INPUT.FORMAT == "RGB"


def test_weights_that_are_named_come_first(folder):
    other = str(folder / "other.pth")
    assert other == load_run(folder, other).MODEL.WEIGHTS
    assert other == load_run(folder, opts=["MODEL.WEIGHTS", other]).MODEL.WEIGHTS
    assert other == load_run(folder / "config.yaml", other).MODEL.WEIGHTS


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.WEIGHTS", ""], r"config\.yaml: MODEL\.WEIGHTS is empty"),
        ([], r"weights 'imagenet\.pkl' do not exist: set MODEL\.WEIGHTS"),
        (["MODEL.WEIGHTS", "{}/other.pth", "DATASETS.CLASS_NAMES", "('a',)"], "1 class names for"),
    ],
)
def test_a_run_that_cannot_predict_is_refused(folder, opts, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        load_run(folder / "config.yaml", opts=[o.format(folder) for o in opts])


@pytest.mark.parametrize("gpu", [True, False])
def test_the_cpu_takes_the_place_of_a_gpu_that_is_not_there(folder, monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    cfg = load_run(folder)
    assert ("cuda" if gpu else "cpu", gpu) == (cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED)
    elsewhere = load_run(folder, device_of_this_machine=False)  # of a cluster
    assert (elsewhere.MODEL.DEVICE, elsewhere.SOLVER.AMP.ENABLED) == ("cuda", True)
