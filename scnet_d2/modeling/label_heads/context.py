"""What a head knows of the labels before it sees an image, from the training set alone."""

import zlib
from collections.abc import Sequence

import torch
from detectron2.config import configurable
from torch import nn

from .word_vectors import read_word_vectors


class LabelContext(nn.Module):
    """How often labels come in the training set, and together, and vectors of their names.

    It is saved with the weights, as buffers: `counts` (C,) images that have a label,
    `cooccurrence` (C, C) images that have two, 0 on the diagonal, `num_images`, `word_vectors`
    (C, W) and `class_codes` (C,), checksums of the class names that all this belongs to.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        class_names: Sequence[str] = (),
        word_dim: int = 0,
        word_file: str = "",
    ):
        """
        Args:
            num_classes: C.
            class_names: where they are known: a checkpoint of other ones is refused.
            word_dim: W, length of a word vector; 0: there are none.
            word_file: see `read_word_vectors`.
        """
        super().__init__()
        if class_names and len(class_names) != num_classes:
            raise ValueError(
                f"the length of DATASETS.CLASS_NAMES is {len(class_names)}, "
                f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; correct one of them"
            )
        self.word_file = word_file
        self.class_names = list(class_names)
        self.register_buffer("num_images", torch.zeros(()))
        self.register_buffer("counts", torch.zeros(num_classes))
        self.register_buffer("cooccurrence", torch.zeros(num_classes, num_classes))
        self.register_buffer("class_codes", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("word_vectors", torch.zeros(num_classes, word_dim))
        if self.class_names:
            self.class_codes.copy_(_codes(self.class_names))

    @classmethod
    def from_config(cls, cfg, words: bool = False):
        """`words` says whether the head needs word vectors."""
        part = cfg.MODEL.IMAGE_LABELER
        return {
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "class_names": cfg.DATASETS.CLASS_NAMES,
            "word_dim": part.WORD_DIM if words else 0,
            "word_file": part.WORD_VECTORS,
        }

    def fill(self, class_names: Sequence[str], labels: Sequence[Sequence[int]]) -> None:
        """Take over a training set.

        Args:
            class_names: C names, in the order of the labels.
            labels: for each image the ids of the labels that are present.

        Raises:
            ValueError: if the classes are others than those of the config, or in another order.
            ConfigError: if a class has no word vector, or one of another length.
        """
        codes = _codes(class_names)
        self._check(codes, class_names, "the training set")
        self.class_names = list(class_names)
        self.class_codes.copy_(codes)
        present = torch.zeros(len(labels), len(class_names))  # (M, C)
        for row, ids in zip(present, labels):
            row[list(ids)] = 1
        together = present.T @ present
        self.num_images.fill_(len(labels))
        self.counts.copy_(together.diagonal())
        self.cooccurrence.copy_(together - together.diagonal().diag())
        if dim := self.word_vectors.shape[1]:
            self.word_vectors.copy_(read_word_vectors(self.word_file, class_names, dim))

    def check_filled(self) -> None:
        """Refuse to work before there is a training set, or weights.

        Raises:
            RuntimeError: naming the remedy.
        """
        if not self.num_images:
            raise RuntimeError(
                "this label head needs the labels of the training set: train it with the Trainer, "
                "load weights of it, or call its fill_context"
            )

    def conditional(self) -> torch.Tensor:
        """(C, C), entry (i, j): the share of the images with label i that have label j too."""
        self.check_filled()
        return self.cooccurrence / self.counts[:, None].clamp(min=1)

    def _check(self, codes: torch.Tensor, names: Sequence[str], source: str) -> None:
        """Refuse checksums that differ from those of the names that are known here."""
        own = self.class_codes.cpu()
        if not own.any() or (len(codes) == len(own) and (codes == own).all()):
            return
        i = next((i for i, (a, b) in enumerate(zip(codes, own)) if a != b), len(own))
        theirs = f"'{names[i]}'" if i < len(names) else "another one"
        ours = f"'{self.class_names[i]}'" if i < len(self.class_names) else "another one"
        raise ValueError(
            f"class {i} is {theirs} in {source} and {ours} in the config: counts, co-occurrence "
            "and word vectors would count for wrong labels. Use DATASETS.CLASS_NAMES and data of "
            "the weights, or start from weights without a label head"
        )

    def _load_from_state_dict(self, state_dict, prefix, *args):
        codes = state_dict.get(f"{prefix}class_codes")
        if codes is not None and codes.any():
            self._check(codes.cpu(), (), "the weights")
        super()._load_from_state_dict(state_dict, prefix, *args)


def _codes(names: Sequence[str]) -> torch.Tensor:
    """(C,) int64 checksums of names."""
    return torch.tensor([zlib.crc32(name.encode()) for name in names])
