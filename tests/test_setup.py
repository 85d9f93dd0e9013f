"""What is installed: models, OpenCV without X and GL libraries; what a wrong OpenCV build says."""

import ctypes
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPO

import setup as package_setup


@pytest.mark.parametrize("absent", package_setup.WINDOW_LIBRARIES)
def test_opencv_without_windows_is_required_where_a_library_is_absent(absent, monkeypatch, capsys):
    def load(name):
        if name == absent:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(sys, "platform", "linux")
    assert package_setup.opencv().startswith("opencv-python-headless>=")
    assert absent in capsys.readouterr().out


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_opencv_with_windows_is_required_elsewhere(platform, monkeypatch):
    def load(name):
        if platform == "darwin":
            raise OSError(f"{name}: not on this system, and not needed")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(sys, "platform", platform)
    assert package_setup.opencv().startswith("opencv-python>=")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "'libxcb.so.1: cannot open shared object file: No such file or directory'",
            "which this machine lacks. Remedy: `pip uninstall -y opencv-python opencv-python-headle"
            "ss; pip install opencv-python-headless`",
        ),
        (
            "'numpy.core.multiarray failed to import'",
            "built for another NumPy. Remedy: `pip install --upgrade opencv-python-headless`",
        ),
        (
            "\"No module named 'cv2'\", name='cv2'",
            "OpenCV is not installed. Remedy: `pip install opencv-python-headless`",
        ),
        ("'something else'", "ImportError: something else"),
    ],
    ids=["library", "numpy", "absent", "else"],
)
def test_opencv_that_cannot_be_imported_is_named_with_the_remedy_by_every_program(
    fault, message, tmp_path
):
    (tmp_path / "cv2.py").write_text(f"raise ImportError({fault})")
    folders = ("benchmarks", "demo", "experiments", "tools")
    programs = [f"{p}" for f in folders for p in sorted((REPO / f).glob("*.py"))]
    code = """if True:
        import importlib, runpy, sys
        for program in sys.argv[1:]:
            try:
                if program.endswith(".py"):
                    runpy.run_path(program)
                else:
                    importlib.import_module(f"scnet_d2.cli.{program}")
            except ImportError as error:
                print(f"{type(error).__name__}: {error}")"""
    programs += [p.stem for p in sorted((REPO / "scnet_d2" / "cli").glob("[a-z]*.py"))]
    command = [sys.executable, "-c", code, *programs]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPO)])}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert len(lines) == len(programs)
    for line in lines:
        assert line.startswith("ImportError: ")
        assert line.endswith(message)


def test_a_model_folder_is_installed_with_the_package(tmp_path):
    shutil.copy(REPO / "setup.py", tmp_path)
    folder = tmp_path / "scnet_d2" / "model_zoo" / "tiny"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    files = {"README.md", "config.yaml", "model.safetensors", "thresholds.json"}
    for name in files:
        (folder / name).touch()
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "built"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    assert set(os.listdir(tmp_path / "built" / "scnet_d2" / "model_zoo" / "tiny")) == files
