"""The files that tagging writes: lines that survive an interruption, and formats made of them."""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from ..outputs import replacing

FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".json": "coco"}
CSV_COLUMNS = (
    "file", "width", "height", "label", "score", "x0", "y0", "x1", "y1",
    "context_x0", "context_y0", "context_x1", "context_y1", "error",
)  # fmt: skip
_COCO_START = '{"info": {"description": "scnet tag'
_START = b'{"file": '  # of every line
_NO_BOX = [None] * 4


class OutputError(ValueError):
    """An output cannot be written or continued; the message names the file and the remedy."""


class TagOutput:
    """Lines of tagged images, appended as they are finished, and the file in the end.

    With the format jsonl the lines are the output. The others are made of the lines, which stand in
    `<output>.lines.jsonl`, and renamed into place. `<output>.settings.json` tells what the images
    were tagged with, so that nothing else is mixed in. Used in a `with` statement, during which
    no other process can use the same output.

    Attributes:
        folder: where relative paths of the lines begin, from whichever folder they are added: the
            current folder of the first run, while that exists.
    """

    def __init__(self, path: Path, file_format: str, settings: dict[str, Any]):
        """
        Args:
            path: the output.
            file_format: jsonl, csv or coco.
            settings: `version`, `weights`, `thresholds`, `top_k` and all else that the labels
                depend on; `weights_file` is for information, `folder` is the current one.
        """
        self.path = path
        self.file_format = file_format
        self.settings = json.loads(json.dumps(settings))  # tuples become lists
        self.lines = path if file_format == "jsonl" else Path(f"{path}.lines.jsonl")
        self.folder = os.getcwd()
        self._settings_file = Path(f"{path}.settings.json")

    def __enter__(self) -> TagOutput:
        """
        Raises:
            OutputError: if the output is another program's or of other settings, or is in use.
        """
        self._check_foreign()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._settings_file.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError as error:
            self._lock.close()
            raise OutputError(
                f"{self.path} is being written by another process: wait for it, or choose another "
                "--output"
            ) from error
        try:
            self._check_settings()
            self._is_new = not self.lines.exists()
            self._file = self.lines.open("a+b")
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, kind, *exception) -> None:
        """A refusal, which is a ValueError, leaves nothing behind where nothing was done."""
        self._file.close()
        if kind and issubclass(kind, ValueError) and _size(self.lines) == 0:
            self._settings_file.unlink(missing_ok=True)
            if self._is_new:
                self.lines.unlink(missing_ok=True)
        self._lock.close()

    def finished(self, *, without_failed: bool = False) -> Iterator[dict]:
        """Records of the images that are finished; read to the end, before anything is appended.

        A half-written last line is cut off.

        Args:
            without_failed: take the lines of images that could not be tagged out of the file.

        Raises:
            OutputError: if a line is not one of a tagged image.
        """
        if without_failed:
            good = (record for record in self._records() if "error" not in record)
            with _replacing(self.lines) as file:
                file.writelines(map(_line, good))
            self._file.close()
            self._file = self.lines.open("a+b")
        yield from self._records()
        self._file.truncate(self._end)

    def append(self, records: Iterable[dict]) -> None:
        """Write the lines of finished images; on return they are on the disk."""
        lines = (_line(record | {"file": self._path(record["file"])}) for record in records)
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def write_result(self, class_names: list[str]) -> None:
        """Write the file of a format other than jsonl, all of it or none."""
        if self.file_format == "csv":
            with _replacing(self.path) as file:
                _write_csv(file, self._records())
        elif self.file_format == "coco":
            with _replacing(self.path) as file:
                _write_coco(file, self._records, self.settings, class_names)

    def _path(self, file: str) -> str:
        """A path from the current folder, as it is written: relative ones begin at `folder`."""
        if os.path.isabs(file) or self.folder == os.getcwd():
            return file
        parent, name = os.path.split(file)
        return os.path.relpath(os.path.join(os.path.realpath(parent), name), self.folder)

    def _records(self) -> Iterator[dict]:
        self._end = 0  # of the whole lines, in bytes
        with self.lines.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and line.startswith(_START[: len(line)]):
                    return  # half written
                yield _parse(line, f"{self.lines}, line {number}")
                self._end += len(line)

    def _check_foreign(self) -> None:
        """Refuse what another program wrote."""
        ours = self._settings_file.exists()
        if ours and self.file_format != "jsonl":
            start = ",".join(CSV_COLUMNS) if self.file_format == "csv" else _COCO_START
            ours = _size(self.path) == 0 or _begins(self.path, start)
        if not ours and _size(self.path) + _size(self.lines) > 0:
            raise OutputError(
                f"{self.path} is there already and was not written by this program: choose another "
                "--output, or remove it"
            )

    def _check_settings(self) -> None:
        """Refuse to mix settings; note them where no image is finished yet."""
        self._lock.seek(0)
        text = self._lock.read()
        if _size(self.lines) > 0:
            former = _settings(text, self._settings_file)
            if os.path.isdir(former.get("folder", "")):
                self.folder = former["folder"]
            changes = list(_differences(former, self.settings))
            if changes:
                more = f" and {len(changes) - 3} more" if changes[3:] else ""
                raise OutputError(
                    f"{self.path} holds images tagged with other settings: "
                    f"{'; '.join(changes[:3])}{more}. Use the former ones, or choose another "
                    "--output"
                )
        elif text != (new := json.dumps(self.settings, indent=1) + "\n"):
            self._lock.truncate(0)
            self._lock.write(new)
            self._lock.flush()
            os.fsync(self._lock.fileno())


def _settings(text: str, path: Path) -> dict[str, Any]:
    with suppress(ValueError):
        settings = json.loads(text)
        if isinstance(settings, dict):
            return settings
    raise OutputError(f"{path} is damaged: choose another --output")


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """One text for each setting that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted((old.keys() | new.keys()) - {"weights_file", "folder"}):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} was {_short(old)} and is {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _line(record: dict) -> str:
    return json.dumps(record) + "\n"


def _parse(line: bytes, where: str) -> dict:
    with suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and "file" in record and {"labels", "error"} & record.keys():
            return record
    raise OutputError(
        f"{where} is not the line of a tagged image; nothing was changed. Take it out, or choose "
        "another --output"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _begins(path: Path, start: str) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start.encode()


def _replacing(path: Path) -> AbstractContextManager[TextIO]:
    """Open a text file that takes its name when it is whole.

    Bytes of file names that are not UTF-8 stand in it as in JSON, see docs/tagging.md.
    """
    return replacing(path, "w", errors="backslashreplace", newline="")


def _write_csv(file: TextIO, records: Iterable[dict]) -> None:
    """One row for each label; one without a label for an image that has none."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for record in records:
        image = [record["file"], record.get("width"), record.get("height")]
        for x in record.get("labels") or [{}]:
            boxes = (x.get("box") or _NO_BOX) + (x.get("context_box") or _NO_BOX)
            label = [x.get("label"), x.get("score")]
            writer.writerow([*image, *label, *boxes, record.get("error")])


def _write_coco(file: TextIO, read, settings: dict, class_names: list[str]) -> None:
    """COCO's detection format, streamed; image-level labels and failed images in further keys.

    Args:
        file: where it is written.
        read: gives an iterator of the records, each time it is called.
        settings: of the run.
        class_names: category ids are 1, 2, … in this order.
    """
    ids = {name: i for i, name in enumerate(class_names, 1)}
    info = {"description": f"scnet tag, scnet_d2 {settings['version']}"}
    info |= {key: settings[key] for key in ("weights", "thresholds", "top_k")}
    categories = [{"id": i, "name": name} for name, i in ids.items()]
    file.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)}')
    good = (r for r in read() if "error" not in r)
    _write_list(file, "images", (_coco_image(i, r, ids) for i, r in enumerate(good, 1)))
    good = (r for r in read() if "error" not in r)
    boxes = chain.from_iterable(_coco_boxes(i, r, ids) for i, r in enumerate(good, 1))
    _write_list(file, "annotations", ({"id": i} | box for i, box in enumerate(boxes, 1)))
    failed = (r for r in read() if "error" in r)
    _write_list(file, "failed", ({"file_name": r["file"], "error": r["error"]} for r in failed))
    file.write("}\n")


def _write_list(file: TextIO, key: str, items: Iterator[dict]) -> None:
    texts = map(json.dumps, items)
    file.write(f',\n"{key}": [')
    file.write("".join(islice(texts, 1)))
    file.writelines(f",\n{text}" for text in texts)
    file.write("]")


def _coco_image(image_id: int, record: dict, ids: dict[str, int]) -> dict:
    labels = [{"category_id": ids[x["label"]], "score": x["score"]} for x in record["labels"]]
    size = {"width": record["width"], "height": record["height"]}
    return {"id": image_id, "file_name": record["file"], **size, "labels": labels}


def _coco_boxes(image_id: int, record: dict, ids: dict[str, int]) -> Iterator[dict]:
    for x in record["labels"]:
        if x["box"]:
            box = _xywh(x["box"])
            yield {
                "image_id": image_id,
                "category_id": ids[x["label"]],
                "bbox": box,
                "area": round(box[2] * box[3], 2),
                "iscrowd": 0,
                "score": x["score"],
                "context_bbox": x["context_box"] and _xywh(x["context_box"]),
            } | {key: x[key] for key in ("context_ratio",) if key in x}


def _xywh(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, round(x1 - x0, 1), round(y1 - y0, 1)]
