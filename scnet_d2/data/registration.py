"""Registers data sets that lie in files of one's own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .errors import DatasetError
from .problems import counted

_PATHS = ("json_file", "label_file", "dirname", "image_root")


def register_files(
    name: str, load: Callable[..., list[dict[str, Any]]], **paths: str | os.PathLike
) -> None:
    """Register a data set that is read when it is first asked for.

    Args:
        name: of the data set.
        load: called with `paths` and `dataset_name`.
        paths: become the metadata of the data set; ``~`` is the home folder.

    Raises:
        DatasetError: if ``name`` belongs to another data set, or is a path.
    """
    if name in (".", "..") or "/" in name or os.sep in name:
        raise DatasetError(f"'{name}' is a path; name the data set without '/': folders bear it")
    paths = {key: os.path.expanduser(path) for key, path in paths.items()}
    if name in DatasetCatalog:
        _require_same(name, paths)
        return
    MetadataCatalog.pop(name, None)  # left behind by DatasetCatalog.remove(name)
    MetadataCatalog.get(name).set(**paths, evaluator_type="multilabel")
    DatasetCatalog.register(name, lambda: load(**paths, dataset_name=name))


def _require_same(name: str, paths: dict[str, str]) -> None:
    known = vars(MetadataCatalog.get(name))
    same = all(known.get(key) == path for key, path in paths.items())
    if not (same and known.get("evaluator_type") == "multilabel"):
        has = " and ".join(f"{key} '{known[key]}'" for key in _PATHS if key in known)
        raise DatasetError(
            f"data set '{name}' is already registered{' with ' * bool(has)}{has}; register "
            f"'{next(iter(paths.values()))}' under another name."
        )


def set_metadata(name: str, classes: Sequence[str], file: str, **metadata: Any) -> None:
    """Give a data set the classes of its file, and other metadata.

    Raises:
        DatasetError: if it has other classes already.
    """
    meta = MetadataCatalog.get(name)
    known = meta.get("thing_classes", classes)
    if known != classes:
        raise DatasetError(
            f"{file}: it has {counted(len(classes), 'category', 'categories')} and data set "
            f"'{name}' has {len(known)}: {_first_difference(classes, known)}. For data of your "
            "own, write the same categories into all files, also those without annotations, and "
            "register each under a name of its own."
        )
    # Metadata refuses a second value for a key; the root may have changed since registration.
    vars(meta).update(thing_classes=classes, **metadata)


def _first_difference(classes: Sequence[str], known: Sequence[str]) -> str:
    """The first place where two lists of class names differ."""
    pairs = itertools.zip_longest(classes, known)
    i, (ours, theirs) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
    return f"class {i} is {ours!r} here and {theirs!r} there"
