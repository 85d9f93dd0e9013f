"""The wheel, built and installed beside Detectron2 in an environment of its own, offline."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from scnet_d2.data.context_scenes import SceneConfig, render_scene
from scnet_d2.outputs import write_image

import pytest
from conftest import CONFIGS, REPO

SOURCES = ("LICENSE", "configs", "pyproject.toml", "scnet_command", "scnet_d2", "setup.py")
BUILD = "from setuptools.build_meta import build_wheel; build_wheel('.')"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that `python -m build` makes."""
    folder = tmp_path_factory.mktemp("sources")
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, folder / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(REPO / name, folder)
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_it_has_all_modules_configs_models_and_types_and_no_tests(wheel):
    found = set(zipfile.ZipFile(wheel).namelist())
    modules = [x for p in ("scnet_command", "scnet_d2") for x in (REPO / p).rglob("*.py")]
    wanted = {x.relative_to(REPO).as_posix() for x in modules}
    wanted |= {f"{package}/py.typed" for package in ("scnet_command", "scnet_d2")}
    zoo = "scnet_d2/model_zoo"
    configs = [x for ending in ("py", "yaml") for x in CONFIGS.rglob(f"*.{ending}")]
    wanted |= {f"{zoo}/configs/{x.relative_to(CONFIGS).as_posix()}" for x in configs}
    model = ("README.md", "config.yaml", "model.safetensors")
    wanted |= {f"{zoo}/scnet_lite_voc/{name}" for name in model}
    assert wanted <= found
    assert {name.partition("/")[0].partition("-")[0] for name in found} == {
        "scnet_command", "scnet_d2",
    }  # fmt: skip


def test_installed_it_lists_its_models_and_tags_an_image(wheel, tmp_path):
    def run(*command) -> str:
        return subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, check=True, text=True,
            stdout=subprocess.PIPE,
        ).stdout  # fmt: skip

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run(sys.executable, "-m", "venv", "--without-pip", "env")
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # What it requires, but not the editable scnet_d2: a link like this one is not followed there.
    (packages / "required.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", "env/bin/python", "install", "-q")
    run(*pip, "--no-deps", "--no-index", "--no-compile", "--ignore-installed", wheel)
    scnet = "env/bin/scnet"
    assert "Tag any number of images" in run(scnet, "--help")
    assert "  VOC-MultiLabel/scnet_R_50_FPN\n" in run(scnet, "models")
    write_image(tmp_path / "scene.png", render_scene(SceneConfig(), "test", 0)[0])
    options = ("--model", "scnet_lite_voc", "--output", "labels.jsonl", "--workers", 0)
    run(scnet, "tag", "scene.png", *options, "--threshold", 0)
    (record,) = map(json.loads, (tmp_path / "labels.jsonl").open())
    assert len(record["labels"]) == 20
    settings = json.loads((tmp_path / "labels.jsonl.settings.json").read_text())
    assert str(tmp_path / "env") in json.dumps(settings)
