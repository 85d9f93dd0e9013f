"""Problems of a data set, collected: one look tells all of them, and checking ends at none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from detectron2.utils.file_io import PathManager

from .errors import DatasetError, exceeds_share

SHOWN = 3  # of each kind


class Fault(ValueError):
    """One problem: what is wrong, and in `remedy` what to do."""

    def __init__(self, fault: str, remedy: str):
        super().__init__(fault)
        self.remedy = remedy


class Problems:
    """What is wrong with a data set, counted by kind; problems with one remedy are of one kind."""

    def __init__(self, source: str):
        """
        Args:
            source: the file or the data set, for the messages.
        """
        self.source = source
        self._counts: Counter[str] = Counter()
        self._shown: dict[str, list[str]] = defaultdict(list)

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, fault: str, remedy: str) -> None:
        """Count a problem, whose remedy tells its kind."""
        self._counts[remedy] += 1
        if len(self._shown[remedy]) < SHOWN:
            self._shown[remedy].append(fault)

    def lines(self) -> list[str]:
        """A line for each kind: how many, the first ones, and what to do."""
        return [f"{self.source}: {self._line(remedy)}" for remedy in self._counts]

    def _line(self, remedy: str) -> str:
        count, faults = self._counts[remedy], " | ".join(self._shown[remedy])
        if count == 1:
            return f"{faults}; {remedy}"
        return f"{count:,} times: {faults}{' | …' if count > SHOWN else ''}; {remedy}"

    def raise_any(self, records: Sequence[dict[str, Any]] = ()) -> None:
        """Raise one error for all of them; do nothing where there are none.

        Args:
            records: see `DatasetError`.

        Raises:
            DatasetError: with a line for each kind.
        """
        if not self:
            return
        lines = self.lines()
        message = f"{lines[0]}."
        if len(lines) > 1:
            kinds = "\n".join(f"- {self._line(remedy)}" for remedy in self._counts)
            message = f"{self.source}: {len(self):,} problems of {len(lines)} kinds:\n{kinds}"
        raise DatasetError(message, lines, records)


def counted(count: int, one: str, many: str = "") -> str:
    """A number and what it counts: "1 image", "2 images", "3 classes"; `many` where that fails."""
    return f"{count:,} {one if count == 1 else many or one + ('es' if one[-1] in 'sx' else 's')}"


def first_ones(texts: Sequence[str]) -> str:
    """The first three of some texts, and how many there are beside them."""
    more = f" and {len(texts) - SHOWN:,} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def find_missing_files(
    dataset_dicts: Sequence[dict[str, Any]], max_missing: float, problems: Problems
) -> None:
    """Look for the image files of a data set, without opening them.

    Args:
        dataset_dicts: those without a ``file_name`` are not looked for.
        max_missing: share of them that may be absent.
        problems: get one for all absent files, with their number.
    """
    files = [d["file_name"] for d in dataset_dicts if "file_name" in d]
    missing = [repr(f) for f in files if not PathManager.isfile(f)]
    if exceeds_share(len(missing), len(files), max_missing):
        do = "does" if len(missing) == 1 else "do"
        problems.add(
            f"{len(missing):,} of its {counted(len(files), 'image file')} {do} not exist, first "
            f"{first_ones(missing)}",
            "correct the image folder or the file names; `scnet check` checks the whole "
            f"data set, DATALOADER.MAX_BAD_IMAGES ({max_missing}) is the share that may be absent",
        )


EMPTY_ANNOTATION = (
    "annotation {!r} of image {!r} marks nothing (bbox [0, 0, 0, 0] or an empty segmentation)"
)


def find_empty_annotations(
    records: Sequence[dict[str, Any]], problems: Problems, fault: str = EMPTY_ANNOTATION
) -> None:
    """Add the annotations that mark nothing, which are no labels; `fault` names one."""
    for record in records:
        for annotation in record.get("empty_annotations", ()):
            problems.add(fault.format(annotation, record["image_id"]), "draw it again or delete it")


def find_bad_class_names(names: Sequence[str], problems: Problems) -> None:
    """Add the class names that would break the lines and columns they are printed in."""
    for name in names:
        if not (name.strip() and name.isprintable()):
            problems.add(
                f"the class name {name!r} is empty or has characters that cannot be printed",
                "rename it",
            )


def check_class_names(names: Sequence[str], source: str) -> None:
    """Refuse what `find_bad_class_names` finds.

    Raises:
        DatasetError: naming ``source`` and the names.
    """
    problems = Problems(source)
    find_bad_class_names(names, problems)
    problems.raise_any()
