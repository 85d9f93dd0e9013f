"""Photographs of the demo: their files, and that the package states the licences that we state."""

import ast
from importlib.util import find_spec
from pathlib import Path

from scnet_d2.data import read_image

import photographs
import pytest

import demo

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
