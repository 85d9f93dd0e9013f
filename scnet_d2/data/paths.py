"""File names of annotations as paths below the folder of the images."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePath

from detectron2.utils.file_io import PathManager

from .errors import is_inside
from .problems import Problems, counted, first_ones

logger = logging.getLogger(__name__)


def is_file_name(text: str) -> bool:
    """Whether a text can name a file (JSON allows half characters).

    A name that the file system has in another encoding comes with surrogate escapes.
    """
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return bool(text.strip()) and "\0" not in text


def with_paths(images: list[dict], image_root: str, problems: Problems) -> list[dict]:
    """The images of this folder, their file names made paths.

    Where one names no file, the name under which it exists takes its place, with a line.
    """

    def exists(name: str) -> bool:
        return is_inside(image_root, name) and PathManager.isfile(os.path.join(image_root, name))

    others = {}  # image id: the name under which its file exists
    for image in images:
        names = list(_other_names(image["file_name"], image_root))  # nearly always none
        if names and not exists(image["file_name"]):
            others[image["id"]] = next(filter(exists, names), None)
    counts = Counter(others.get(image["id"]) or image["file_name"] for image in images)
    inside, corrected = [], []
    for image in images:
        name, other = image["file_name"], others.get(image["id"])
        if other and (counts[other] == 1 or not _leads_out(name)):  # a/1.jpg and b/1.jpg are two
            corrected.append(f"{name!r}, read as {other!r}")
            name = other
        if is_inside(image_root, name):
            inside.append({**image, "file_name": os.path.join(image_root, name)})
        else:
            problems.add(
                f"image {image['id']!r}: {name!r} leads out of '{image_root}'",
                "correct it, or choose a folder that holds all images",
            )
    if corrected:
        logger.warning(
            f"{problems.source}: corrected {counted(len(corrected), 'file name')} that name no "
            f"file of '{image_root}', first {first_ones(corrected)}."
        )
    return inside


def _other_names(name: str, image_root: str) -> Iterator[str]:
    """What a name may mean.

    It may have Windows' backslashes or folders of the image root again, or lead to where a program
    for labelling had the images.
    """
    parts = name.replace("\\", "/").removeprefix("./").split("/")
    if "\\" in name:
        yield "/".join(parts)
    root = PurePath(os.path.abspath(image_root)).parts if len(parts) > 1 else ()
    for n in range(1, len(parts)):
        if list(root[-n:]) == parts[:n] or _leads_out(name):
            yield "/".join(parts[n:])


def _leads_out(name: str) -> bool:
    return re.match(r"([A-Za-z]:)?[\\/]|\.\.[\\/]", name) is not None
