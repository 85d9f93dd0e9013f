"""What of a checkpoint went into a model and what not: the loading table and its checks."""

from collections import Counter
from dataclasses import dataclass, field

from tabulate import tabulate

from ..data.problems import counted
from .files import CheckpointError
from .names import part_of


@dataclass
class LoadReport:
    """Tensors of one loading, by name.

    Attributes:
        file: the checkpoint.
        loaded: model's tensors that came from the file.
        missing: model's tensors that are not in the file.
        filled: frozen batch norm statistics that are not in the file and are 0 and 1 in its stead,
            right for Caffe2's weights, which have them folded.
        wrong_shape: model's tensor → (shape in the file, shape in the model).
        left_out: file's tensor → why it has no place in the model.
        sources: part of the model → part of the file, where the names differ.
    """

    file: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    wrong_shape: dict[str, tuple[tuple, tuple]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The loading table, at most 100 columns wide but for the name of the file."""
        counts = [_by_part(x) for x in (self.loaded, self._absent(), self.wrong_shape)]
        parts = dict.fromkeys(p for c in counts for p in c)
        rows = [(p, *(c[p] for c in counts), self._why(p)) for p in sorted(parts)]
        headers = ("part of the model", "loaded", "missing", "mismatch", "why")
        total = sum(map(len, (self.loaded, self.missing, self.filled, self.wrong_shape)))
        text = f"Weights: {len(self.loaded)} of {total} tensors from {self.file}\n"
        text += _table(rows, headers, 24)
        left_out = Counter((part_of(name), why) for name, why in self.left_out.items())
        if left_out:
            rows = [(p, n, why) for (p, why), n in sorted(left_out.items())]
            text += "\n\n" + _table(rows, ("left out of the file", "tensors", "why"), 50)
        return text

    def check_fits(self) -> None:
        """Refuse a file that holds nothing of the model, or less than half of its backbone.

        Raises:
            CheckpointError: naming the file and the names that were compared.
        """
        absent = [*self.missing, *self.wrong_shape]
        backbone = [n for n in absent if n.startswith("backbone.")]
        loaded = [n for n in self.loaded if n.startswith("backbone.")]
        if self.loaded and len(loaded) >= len(backbone):
            return
        what, loaded, wanted = (
            ("the model's backbone", loaded, backbone) if backbone else ("the model", [], absent)
        )
        found = [*self.left_out, *self.wrong_shape, *self.loaded]
        raise CheckpointError(
            f"{self.file} holds {len(loaded)} of the {len(loaded) + len(wanted)} tensors of "
            f"{what}; the rest would be random. The file has {_first(found)}; the model also needs "
            f"{_first(wanted)}. {_remedy(found)}"
        )

    def check_complete(self) -> None:
        """Refuse a file that leaves any tensor of the model at its random initial values.

        Raises:
            CheckpointError: naming the file, and both numbers of classes or the number of tensors
                and the first names.
        """
        absent = [*self.missing, *self.wrong_shape]
        if counts := self._class_counts():
            raise CheckpointError(
                f"{self.file} holds {counted(counts[0], 'class')}, the config has {counts[1]}: "
                "use the config.yaml of its training run, or set MODEL.ROI_HEADS.NUM_CLASSES to "
                f"{counts[0]}"
            )
        if absent:
            total = len(self.loaded) + len(absent)
            raise CheckpointError(
                f"{self.file} lacks {len(absent)} of the model's {total} tensors "
                f"({_first(absent)}), which would keep random values. Use a checkpoint that was "
                "trained with this config, or the config.yaml beside the checkpoint"
            )

    def _class_counts(self) -> tuple[int, int] | None:
        """Numbers of classes of the file and of the model, where they differ."""
        for name, ((in_file, *_), (in_model, *_)) in self.wrong_shape.items():
            if name.endswith("label_score.bias"):
                return in_file, in_model
            if name.endswith("box_predictor.cls_score.bias"):  # and the background
                return in_file - 1, in_model - 1
        return None

    def partly_loaded(self) -> list[str]:
        """Parts of the backbone of which some tensors are loaded and others random."""
        loaded, absent = _by_part(self.loaded), _by_part([*self.missing, *self.wrong_shape])
        return [p for p in loaded if p.startswith("backbone") and absent[p]]

    def _absent(self) -> list[str]:
        return [*self.missing, *self.filled]

    def _why(self, part: str) -> str:
        if part in _by_part(self.wrong_shape):
            name = next(n for n in self.wrong_shape if part_of(n) == part)
            in_file, in_model = self.wrong_shape[name]
            return f"file {in_file}, model {in_model}"
        if part in _by_part(self.missing):
            return "keeps its initial values"
        if part in _by_part(self.filled):
            return "statistics folded into the weights"
        return f"from {self.sources[part]}" if part in self.sources else ""


def _by_part(names) -> Counter:
    return Counter(map(part_of, names))


def _remedy(found: list[str]) -> str:
    if any(n.startswith("layer1.") for n in found):
        return "These are torchvision's names: convert the file with `scnet convert`"
    return "Check that MODEL.BACKBONE and MODEL.RESNETS describe the network of this file"


def _first(names: list[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (", …" if len(names) > n else "")


def _table(rows: list[tuple], headers: tuple[str, ...], last_width: int) -> str:
    widths = [None] * (len(headers) - 1) + [last_width]
    return tabulate(rows, headers, tablefmt="simple", maxcolwidths=widths)
