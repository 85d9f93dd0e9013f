"""Which images a command tags: files, folders, globs and lists, and which of them are done."""

from __future__ import annotations

import glob
import os
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
            ValueError: if a pattern matches nothing, or what does not exist is not named as an
                image is.
        """
        for argument in arguments:
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
    """Paths of a list, one a line, or separated by zero bytes as `find -print0` writes them."""
    ending = b"\r" if separator == b"\n" else b""  # of a list that was written on Windows
    rest = b""
    while block := stream.read(1 << 16):
        *entries, rest = (rest + block).split(separator)
        yield from (os.fsdecode(e.removesuffix(ending)) for e in entries if e.strip())
    if rest.strip():
        yield os.fsdecode(rest.removesuffix(ending))


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


def _matches(argument: str) -> list[str]:
    if os.path.lexists(argument):
        return [argument]
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
    return os.fspath(Path(path))


def _raise(error: OSError) -> None:
    raise error
