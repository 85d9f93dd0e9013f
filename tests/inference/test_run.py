"""load_run: which model, config, weights and device a program gets."""

import re
import shutil

from scnet_d2 import ConfigError, model_zoo
from scnet_d2.inference import load_run
from scnet_d2.inference.run import find_model

import huggingface_hub
import pytest
import torch
from conftest import small_config
from detectron2.utils.file_io import PathManager


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
        (
            ["MODEL.WEIGHTS", "{}/other.pth", "DATASETS.CLASS_NAMES", "('a',)"],
            "1 class name for a",
        ),
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


# ---- Where a model is ---------------------------------------------------------------------------


@pytest.fixture
def zoo(folder, tmp_path, monkeypatch):
    """A model zoo with the model "tiny"."""
    monkeypatch.setattr(model_zoo, "FOLDER", tmp_path / "zoo")
    shutil.copytree(folder, tmp_path / "zoo" / "tiny", ignore=shutil.ignore_patterns("zoo"))
    return tmp_path / "zoo"


def test_a_shipped_model_goes_by_its_name_unless_a_folder_has_it(zoo, folder, monkeypatch):
    assert model_zoo.list_models() == ["tiny"]
    assert str(zoo / "tiny" / "model_final.pth") == load_run("tiny").MODEL.WEIGHTS
    monkeypatch.chdir(folder)
    shutil.copytree(zoo / "tiny", folder / "tiny")
    assert load_run("tiny").MODEL.WEIGHTS == "tiny/model_final.pth"
    with pytest.raises(KeyError, match="no model 'small' comes with scnet_d2; tiny do"):
        model_zoo.model_folder("small")


def test_the_weights_of_a_shipped_model_go_by_its_name(zoo):
    weights = zoo / "tiny" / "model.safetensors"
    assert PathManager.get_local_path("scnet://tiny") == str(weights)
    with pytest.raises(FileNotFoundError, match="no model 'small' comes with scnet_d2; tiny do"):
        PathManager.get_local_path("scnet://small")


def test_a_model_of_the_hub_is_downloaded_without_code(folder, monkeypatch):
    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("user/name") == folder
    assert asked == {
        "user/name": ["config.yaml", "model.safetensors", "README.md", "thresholds.json"]
    }


def test_weights_of_a_model_folder_are_found(folder):
    (folder / "model.safetensors").touch()
    assert str(folder / "model_final.pth") == load_run(folder).MODEL.WEIGHTS
    (folder / "model_final.pth").unlink()
    assert str(folder / "model.safetensors") == load_run(folder).MODEL.WEIGHTS
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has neither model_final\.pth nor model\.safetensors: "):
        load_run(folder)


def no_network(name, **options):
    raise ConnectionError("Name or service not known\nand more")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("smal", "there is no model 'smal': give the name of"),
        ("no.pth", "there is no model 'no.pth': give the name of"),
        (
            "user/name",
            "there is no folder 'user/name', and the Hugging Face hub does not give it "
            "(ConnectionError: Name or service not known): give the name of",
        ),
        ("zoo", "folder 'zoo' has no config.yaml: give the name of"),
    ],
)
def test_what_is_no_model_is_named_with_what_is_taken(source, message, zoo, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    taken = " a model that comes with scnet_d2 (tiny), the folder of a model (config.yaml and "
    with pytest.raises(ConfigError, match=re.escape(message + taken)) as error:
        load_run(source)
    assert "\n" not in str(error.value)


def test_weights_in_the_place_of_a_model_are_called_so(tmp_path):
    (tmp_path / "w.pth").touch()
    with pytest.raises(ConfigError, match=r"w\.pth' are weights: give their folder, or a config"):
        find_model(tmp_path / "w.pth")


def test_a_model_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    assert find_model("~/run") == tmp_path / "run"


@pytest.mark.parametrize("source", ["run/config.yaml", "./user/name", "/user/name", "a/b/c"])
def test_a_path_is_not_looked_for_on_the_hub(source, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail())
    with pytest.raises(ConfigError):
        load_run(source)


def test_thresholds_beside_the_config_are_taken(folder):
    (folder / "own.json").touch()
    text = (folder / "config.yaml").read_text()
    changed = text.replace("LABEL_THRESHOLDS: ''", "LABEL_THRESHOLDS: own.json")
    (folder / "config.yaml").write_text(changed)
    assert changed != text
    weights = folder / "model_final.pth"
    for cfg in (load_run(folder), load_run(folder / "config.yaml", weights)):
        assert str(folder / "own.json") == cfg.TEST.LABEL_THRESHOLDS
    given = ["TEST.LABEL_THRESHOLDS", "own.json"]  # of the current folder
    assert load_run(folder, opts=given).TEST.LABEL_THRESHOLDS == "own.json"
