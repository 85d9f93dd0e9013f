"""Vectors of class names from a text file as GloVe's."""

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils.file_io import PathManager

from ...config import ConfigError

SHIPPED = Path(__file__).with_suffix(".txt")  # of the classes of VOC and COCO, see its script


def read_word_vectors(file: str, names: Sequence[str], dim: int) -> torch.Tensor:
    """Vectors (C, W) of C names.

    Each line of the file is a word and W numbers. A name of several words is looked up as a whole,
    with underscores, or else is the mean of its words.

    Args:
        file: its path; "" for the one that comes with the package, whose vectors are sentence
            embeddings (all-MiniLM-L6-v2, 384 numbers) of the class names of VOC and COCO.
        names: C class names.
        dim: W.

    Raises:
        ConfigError: naming the class that has no vector, or the length of the vectors.
    """
    file = file or str(SHIPPED)
    wanted = {word for name in names for word in (_whole(name), *_words(name))}
    found: dict[str, torch.Tensor] = {}
    with PathManager.open(file, encoding="utf-8") as lines:
        for line in lines:
            word, _, numbers = line.partition(" ")
            if word in wanted:
                found[word] = torch.tensor([float(x) for x in numbers.split()])
    return torch.stack([_vector(name, found, file, dim) for name in names])


def _vector(name: str, found: dict[str, torch.Tensor], file: str, dim: int) -> torch.Tensor:
    words = [_whole(name)] if _whole(name) in found else _words(name)
    if missing := [word for word in words if word not in found]:
        raise ConfigError(
            f"class '{name}': {file} has no vector of '{missing[0]}'; set "
            "MODEL.IMAGE_LABELER.WORD_VECTORS to a file in GloVe's format that has one; "
            "tools/word_vectors.py writes it"
        )
    vector = torch.stack([found[word] for word in words]).mean(dim=0)
    if len(vector) != dim:
        raise ConfigError(
            f"{file}: its vectors have {len(vector)} numbers, MODEL.IMAGE_LABELER.WORD_DIM is "
            f"{dim}; set it to {len(vector)}"
        )
    return vector


def _whole(name: str) -> str:
    return "_".join(_words(name))


def _words(name: str) -> list[str]:
    return name.lower().replace("_", " ").replace("-", " ").split()
