"""Which images a command tags: files, folders, globs and lists, and which of them are done."""

from __future__ import annotations

import codecs
import glob
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

# Files of a folder that count as images. A file that is named itself is always tried.
IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".ppm", ".tif", ".tiff", ".webp",
))  # fmt: skip


_NO_IMAGES = {
    **dict.fromkeys((".csv", ".lst", ".txt"), "a list: scnet tag takes its lines with - < {}"),
    **dict.fromkeys(
        (".avi", ".mkv", ".mov", ".mp4", ".webm"),
        "a video: take frames from it, as with ffmpeg -i {} frames/%06d.jpg",
    ),
}


class ImageFinder:
    """Finds images below folders, by patterns and in lists.

    Attributes:
        left_out: ending, or "hidden" → number of files in folders that are not taken for images.
    """

    def __init__(self):
        self.left_out: Counter[str] = Counter()

    def find(self, arguments: Iterable[str], listed: Iterable[str]) -> Iterator[str]:
        """Paths in the order of the arguments, those of a folder sorted.

        Args:
            arguments: files, folders, patterns, and "-" for `listed`. A file that is named as an
                image is need not exist.
            listed: paths of files, as `read_list` gives them.

        Raises:
            OSError: if a folder cannot be read.
            ValueError: if a pattern matches nothing, what does not exist is not named as an image
                is, a path is an address, or a list or a video alone is given.
        """
        arguments = list(arguments)
        for argument in arguments:
            if len(arguments) == 1:  # among many files, as shells give for *, it is one that fails
                _refuse_list_or_video(argument)
            if argument == "-":
                yield from map(_plain, listed)
            else:
                for path in _matches(argument):
                    yield from self._below(path) if os.path.isdir(path) else [_plain(path)]

    def _below(self, folder: str) -> Iterator[str]:
        for parent, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                suffix = os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    self.left_out["hidden"] += 1
                elif suffix in IMAGE_SUFFIXES:
                    yield _plain(os.path.join(parent, name))
                else:
                    self.left_out[suffix or "no ending"] += 1


def read_list(stream: BinaryIO, separator: bytes = b"\n") -> Iterator[str]:
    """Paths of a list, one a line, or separated by zero bytes as `find -print0` writes them.

    Raises:
        ValueError: if it is UTF-16.
    """
    decode = os.fsdecode
    rest, block = b"", stream.read(1 << 16)
    if separator == b"\n":
        decode = _line
        if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("the list is UTF-16: save it in UTF-8")
        block = block.removeprefix(codecs.BOM_UTF8)
    while block:
        *entries, rest = (rest + block).split(separator)
        yield from (decode(e) for e in entries if e.strip())
        block = stream.read(1 << 16)
    if rest.strip():
        yield decode(rest)


def _line(entry: bytes) -> str:
    """The path on a line, without what Windows puts around it: quotes and a carriage return."""
    path = os.fsdecode(entry.removesuffix(b"\r"))
    quoted = len(path) > 2 and path[0] == path[-1] == '"'
    return path[1:-1] if quoted and not os.path.lexists(path) else path


class InputList:
    """The paths of a run, each image once and in order.

    Two paths are one image where they name the same file of the same folder, as `./a.jpg`, `a.jpg`
    and its absolute path do; relative ones begin at the current folder.

    They are in a temporary SQLite database on disk, so that a million of them take no memory.
    """

    def __init__(self, files: Iterable[str]):
        self._db = sqlite3.connect("")
        self._folder = lru_cache(os.path.realpath)
        columns = "file BLOB, image BLOB UNIQUE, done INTEGER DEFAULT 0"
        self._db.execute(f"CREATE TABLE input ({columns})")
        rows = ((os.fsencode(file), self._image(file)) for file in files)
        self._db.executemany("INSERT OR IGNORE INTO input (file, image) VALUES (?, ?)", rows)

    def _image(self, file: str) -> bytes:
        """One name for all paths of a file; links to files stay files of their own."""
        folder, name = os.path.split(file)
        return os.fsencode(os.path.join(self._folder(folder), name))

    def __len__(self) -> int:
        return self._db.execute("SELECT count(*) FROM input").fetchone()[0]

    def mark_done(self, file: str) -> bool:
        """Take an image from the pending ones; False where it is none of the run's."""
        query = "UPDATE input SET done = 1 WHERE image = ? AND NOT done"
        return self._db.execute(query, (self._image(file),)).rowcount > 0

    def pending(self) -> Iterator[str]:
        """Paths that are not done, in order."""
        for (file,) in self._db.execute("SELECT file FROM input WHERE NOT done ORDER BY rowid"):
            yield os.fsdecode(file)


def _refuse_list_or_video(argument: str) -> None:
    kind = _NO_IMAGES.get(os.path.splitext(argument)[1].lower())
    if kind and os.path.isfile(argument):
        raise ValueError(f"{argument} is no image, but {kind.format(argument)}")


def _matches(argument: str) -> list[str]:
    if os.path.lexists(argument):
        return [argument]
    if "://" in argument:
        return [argument]
    if "," in argument and all(map(os.path.exists, argument.split(","))):
        raise ValueError(f"{argument}: separate files with spaces, not commas")
    if not glob.has_magic(argument):
        if os.path.splitext(argument)[1].lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"{argument} does not exist, and its name is not that of an image: give a file, a "
                "folder or a pattern"
            )
        return [argument]
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        raise ValueError(f"{argument}: no file matches this pattern")
    return matches


def _plain(path: str) -> str:
    """One spelling for a path: no "./" before it, no "//" in it."""
    if re.match("[a-z]+://", path):
        raise ValueError(f"{path} is an address: download the image and give the file")
    return os.fspath(Path(path))


def _raise(error: OSError) -> None:
    raise error
